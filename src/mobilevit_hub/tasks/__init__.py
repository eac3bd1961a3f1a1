"""What depends on the task: results, metrics, reports."""
