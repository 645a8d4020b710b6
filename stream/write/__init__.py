"""Where results go: drawing, files, a window, other machines."""
