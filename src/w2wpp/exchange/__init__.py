"""Other people's files: peft, diffusers, kohya and the published w2w files, in and out.

Nothing here trains.
"""
