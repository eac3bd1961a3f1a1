"""From any picture to `pixel_values`."""
