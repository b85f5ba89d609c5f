"""A FastAPI application that is measured: requests by the middleware, the work inside them by hand.

pip install "tallymark[server]"
python examples/fastapi_app.py        # http://127.0.0.1:8000/greetings/Ada
tallymark serve ./metrics             # the dashboard, in another terminal
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from tallymark import Metrics
from tallymark.collectors.system import SystemCollector
from tallymark.integrations.asgi import MetricsMiddleware

metrics = Metrics("./metrics", service="greeter")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with metrics:
        with SystemCollector(metrics):
            yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(MetricsMiddleware, metrics=metrics)


@metrics.track_operation("translate")
async def translate(text: str) -> str:
    """Stands for something slow. Every call is recorded: how long it took, and whether it failed."""
    await asyncio.sleep(0.02)
    return text.replace("Hello", "Salut")


@app.get("/greetings/{name}")
async def greet(name: str, language: str = "en") -> dict[str, str]:
    metrics.record("greetings", "name_length", len(name), metadata={"language": language})
    greeting = f"Hello, {name}"
    return {"greeting": await translate(greeting) if language == "fr" else greeting}


if __name__ == "__main__":
    uvicorn.run(app)
