"""The embedded demo model: its synthetic clips, its training, its judge and its weights."""
