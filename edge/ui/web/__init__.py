"""The page in the browser: conversations on disk, answers that outlive a reload, the machine beside them.

Only `page`, `serving` and `compare` import gradio.
"""
