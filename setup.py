"""Everything that pip needs to know about mobilevit_hub; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
NAME = "mobilevit_hub"

# The Keras twin, the conversion code and the web demo live at the top of the repository, beside src/, and
# are installed as sub-packages. Automatic discovery does not find mapped folders, hence the explicit list.
ROOTS = {NAME: f"src/{NAME}", f"{NAME}.tf": "tf", f"{NAME}.conversion": "conversion", f"{NAME}.spaces": "spaces"}
PACKAGES = [
    package
    for prefix, folder in ROOTS.items()
    for package in [prefix, *(f"{prefix}.{name}" for name in find_packages(folder))]
]

# Read as text: importing the package would need its dependencies.
INIT = (HERE / "src" / NAME / "version.py").read_text("utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)[1]

# Lower bounds are the oldest versions with the needed security fixes or interfaces.
BASE = [
    "huggingface_hub>=2.4,<3",
    "numpy>=2.0",
    "pillow>=12.3",
    "pyyaml>=6.0",
    "safetensors>=0.8",
    "tqdm>=4.66",
    "transformers>=5.23,<6",
]
EXTRAS = {
    "torch": ["accelerate>=1.15", "torch>=2.10"],
    "tf": ["h5py>=3.12", "keras>=3.15,<4", "tensorflow>=2.21"],
    "tflite": ["ai-edge-litert>=2.3"],
    "export": [
        f"{NAME}[tf,tflite]",
        "ai-edge-quantizer>=0.10",
        "datasets>=5.2",
        "flatbuffers>=25.9",
        "matplotlib>=3.11",
    ],
    "train": ["datasets>=5.2", "matplotlib>=3.11", "tensorboard>=2.20"],
    "eval": ["datasets>=5.2", "evaluate>=0.4.6", "matplotlib>=3.11"],
    "heif": ["pillow-heif>=1.3"],
    "demo": [f"{NAME}[torch,export]", "fastapi>=0.165", "gradio>=6.31", "starlette>=1.10", "uvicorn>=0.54"],
    "docs": ["mkdocs>=1.6", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"],
    "dev": [
        "jupytext>=1.19",
        "mypy>=2.4",
        "onnx>=1.23",
        "onnxruntime>=1.31",
        "onnxscript>=0.7",
        "packaging>=26",
        "playwright>=1.65",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "ruff>=0.17",
        "scikit-learn>=1.8",
        "setuptools>=77",
    ],
    "all": [f"{NAME}[torch,tf,export,train,eval,heif,demo]"],
}

setup(
    name=NAME,
    version=VERSION,
    description="MobileViT and MobileViTv2 in PyTorch and Keras: one checkpoint for both, up to the phone",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author="The mobilevit_hub authors",
    keywords=["mobilevit", "vision transformer", "image classification", "pytorch", "keras", "tflite", "mobile"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir=ROOTS,
    packages=PACKAGES,
    package_data={
        NAME: ["assets/**", "pt/inference/kernels.cpp", "py.typed"],
        f"{NAME}.spaces": ["*.css", "README.md", "examples/*"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": [f"{NAME.replace('_', '-')} = {NAME}.cli.main:main"]},
    zip_safe=False,
)
