"""What a WebUI runs at every start, before it loads the extension.

Everything K-LoRA needs is in every WebUI. So nothing is fetched here, and nothing is printed unless a part is missing.
"""

import sys
from importlib.util import find_spec

NEEDED = ("torch", "safetensors", "numpy", "PIL", "gradio", "fastapi")


def missing() -> list[str]:
    return [name for name in NEEDED if find_spec(name) is None]


if __name__ == "__main__" and missing():
    sys.exit(f"K-LoRA needs {', '.join(missing())}, which this WebUI's Python lacks: repair the WebUI's own installation")
