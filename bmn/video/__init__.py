"""From a video file to its features. Only programs for video import this wing; it needs Python 3.11."""
