"""The page in the browser: conversations on disk, answers that outlive a reload, the machine beside them.

Only `page`, `controls`, `compare` and `serving` import gradio.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported, and reports to its makers else
