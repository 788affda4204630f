"""Where the points of real people lie in a space, so that new ones can be drawn there: distributions over z.

Nothing here draws pictures or looks at photos.
"""
