"""The command `mobilevit-hub`."""
