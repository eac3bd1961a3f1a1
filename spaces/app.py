"""What the Space runs. The rest of this folder is the sub-package `mobilevit_hub.spaces` of what it installs."""

from .server import serve

if __name__ == "__main__":
    serve(host="0.0.0.0", port=7860, embed=True)  # noqa: S104 - a Space is there to be reached
