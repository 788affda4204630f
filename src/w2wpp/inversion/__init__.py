"""From a photo to a point of a space, one way a file."""
