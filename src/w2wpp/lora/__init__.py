"""What an adapter is: its layout, and how a frozen network runs with many of them at once.

Nothing here trains or reads files of others.
"""
