"""The page of `w2w explore`: what one visitor does, and what all visitors share.

It only calls the rooms below and shows what they return; how anything is computed may not live here.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(tempfile.mkdtemp(prefix="w2w-explore-"))  # everything that visitors send and fetch; it goes with the process
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
os.environ["GRADIO_TEMP_DIR"] = str(ROOT)  # gradio reads these when it is imported, and every file of the room imports it later
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
