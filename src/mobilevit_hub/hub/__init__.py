"""From a name to files: presets, the Hub, and what fits a limit."""
