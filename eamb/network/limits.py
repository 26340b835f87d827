"""What the settings must know of the networks without loading torch."""

SMALLEST_SIDE = 64  # pixels, of a picture
