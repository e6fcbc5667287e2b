"""`python -m tests.support.contract`: makes the files anew that are generated from the schema files and committed."""

import subprocess

from bridge import __version__
from bridge.contract import asyncapi, catalog
from bridge.settings import Settings
from tests.support.prepare import NODE, prepare_node

GENERATED = catalog.PACKAGED / "generated"
ASYNCAPI = GENERATED / "asyncapi.json"
DECLARATIONS = GENERATED / "updates.d.ts"


def asyncapi_document() -> bytes:
    """The AsyncAPI document of a bridge whose settings are the defaults."""
    settings = Settings()
    schemas = catalog.load([catalog.PACKAGED])
    return asyncapi.document(
        schemas.documents,
        schemas.filterable,
        asyncapi.Deployment(
            version=__version__,
            host=f"localhost:{settings.port}",
            secure=False,
            path=settings.path,
            exchanges=settings.exchanges,
            reject_exchange=settings.reject_exchange,
        ),
    )


def declarations(node: str) -> bytes:
    """TypeScript declarations for the schema files. `node` is Node's command."""
    done = subprocess.run(
        [node, "declarations.mjs", str(catalog.PACKAGED)], cwd=NODE, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


if __name__ == "__main__":
    prepare_node()
    GENERATED.mkdir(exist_ok=True)
    ASYNCAPI.write_bytes(asyncapi_document())
    DECLARATIONS.write_bytes(declarations("node"))
