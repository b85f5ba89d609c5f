"""A small shop that is measured with tallymark: what it sells, who may buy it, and what goes wrong on the
way.

    python -m tallymark.demo.shop --store ./demo-metrics --port 8000

Nothing here fails on purpose for the sake of a chart: the bank declines cards, shelves run empty, the carrier
does not answer, a report is slow because it has much to count, and old products lack a weight that somebody
relied on.
"""

import argparse
import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from tallymark.integrations.asgi import MetricsMiddleware
from tallymark.recorder import Metrics

ADJECTIVES = ("Oak", "Steel", "Linen", "Clay", "Walnut", "Copper", "Wool", "Glass", "Bamboo", "Slate")
NOUNS = (
    "Chair",
    "Lamp",
    "Kettle",
    "Desk",
    "Vase",
    "Blanket",
    "Shelf",
    "Mirror",
    "Bowl",
    "Clock",
    "Stool",
    "Rug",
)
PACKERS = 2
POST_PARCEL_LIMIT_KG = 20.0


@dataclass
class Product:
    """Something to sell. Products taken over from the old shop system have no weight."""

    id: int
    title: str
    price_cents: int
    stock: int
    weight_kg: float | None


@dataclass
class Order:
    """What somebody bought, and how far it has come: ``paid``, ``picked``, ``packed``, ``shipped`` or
    ``stuck``.
    """

    id: int
    lines: dict[int, int]
    total_cents: int
    status: str = "paid"


class OutOfStock(Exception):
    """There is less on the shelf than was asked for."""


class CardDeclined(Exception):
    """The bank said no."""


class CarrierTimeout(Exception):
    """The carrier's booking service did not answer."""


class Database:
    """Four connections to a database on another machine: whoever comes when all are taken has to wait."""

    def __init__(self) -> None:
        self._connections = asyncio.Semaphore(4)

    async def query(self, typical_ms: float) -> None:
        async with self._connections:
            await network(typical_ms)


async def network(typical_ms: float, spread: float = 0.35) -> None:
    """A round trip: most take about as long as usual, a few much longer."""
    await asyncio.sleep(random.lognormvariate(math.log(typical_ms / 1000), spread))


@dataclass
class Shop:
    """The shop behind the routes."""

    metrics: Metrics
    database: Database = field(default_factory=Database)
    carts: dict[str, Counter[int]] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    to_fulfil: asyncio.Queue[Order] = field(default_factory=asyncio.Queue)
    order_numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1000))

    def __post_init__(self) -> None:
        titles = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
        self.products = {
            number: Product(
                id=number,
                title=title,
                price_cents=900 + number * 137 % 24_000,
                stock=20,
                weight_kg=None if number % 9 == 0 else 0.2 + number * 7 % 30,
            )
            for number, title in enumerate(titles, start=1)
        }

    def reserve(self, cart: Counter[int]) -> None:
        """Take what is in the cart off the shelves, all of it or nothing."""
        for number, wanted in cart.items():
            if self.products[number].stock < wanted:
                raise OutOfStock(self.products[number].title)
        for number, wanted in cart.items():
            self.products[number].stock -= wanted

    def put_back(self, cart: Counter[int]) -> None:
        for number, amount in cart.items():
            self.products[number].stock += amount

    async def charge(self, total_cents: int) -> None:
        """Ask the bank. It looks longer at large sums, and likes them less."""
        async with self.metrics.track_operation(
            "charge", {"provider": "testbank", "large": total_cents > 30_000}, operation_type="payment"
        ):
            await network(60 if total_cents > 30_000 else 25)
            if random.random() < (0.15 if total_cents > 30_000 else 0.04):
                raise CardDeclined

    async def buy(self, cart: Counter[int]) -> Order:
        """Reserve, charge, and hand the order to the packers."""
        total = sum(self.products[number].price_cents * amount for number, amount in cart.items())
        self.reserve(cart)
        try:
            await self.charge(total)
        except CardDeclined:
            self.put_back(cart)
            raise
        await self.database.query(6)
        order = Order(next(self.order_numbers), dict(cart), total)
        self.orders[order.id] = order
        # Older ones are in the archive, which this shop does not have.
        self.orders.pop(order.id - 5_000, None)
        self.to_fulfil.put_nowait(order)
        return order

    async def fulfil_orders(self) -> None:
        """The work of one packer, order after order."""
        while True:
            order = await self.to_fulfil.get()
            self.metrics.record("queue_metrics", "orders_waiting", self.to_fulfil.qsize(), "1")
            try:
                await self.fulfil(order)
            except CarrierTimeout:
                order.status = "stuck"

    async def fulfil(self, order: Order) -> None:
        """Pick, pack and ship one order."""
        pieces = sum(order.lines.values())
        async with self.metrics.track_operation("fulfil order", {"pieces": pieces}, operation_type="job"):
            async with self.metrics.track_operation("pick", {"pieces": pieces}, operation_type="stage"):
                for _ in range(pieces):
                    await network(40)
            order.status = "picked"
            async with self.metrics.track_operation("pack", {"pieces": pieces}, operation_type="stage"):
                await network(60 + 15 * pieces)
            order.status = "packed"
            await self.ship()
            order.status = "shipped"

    async def ship(self) -> None:
        """Book a parcel. The carrier's service hangs now and then, so it is asked up to three times."""
        for attempt in (1, 2, 3):
            try:
                async with self.metrics.track_operation("ship", {"attempt": attempt}, operation_type="stage"):
                    await network(80, spread=0.6)
                    if random.random() < 0.06:
                        await asyncio.sleep(0.5)
                        raise CarrierTimeout("no answer within 0.5 s")
                return
            except CarrierTimeout:
                if attempt == 3:
                    raise

    async def restock(self) -> None:
        """A delivery now and then: whatever has nearly run out is filled up."""
        while True:
            await asyncio.sleep(random.uniform(15, 30))
            empty = [product for product in self.products.values() if product.stock < 5]
            for product in empty:
                product.stock += 20
            self.metrics.record("inventory", "products_restocked", len(empty), "1")

    def shipping_cents(self, product: Product) -> int:
        """What the parcel costs."""
        # The bug of this shop: products from the old system have no weight, and comparing None with a number
        # fails.
        if product.weight_kg > POST_PARCEL_LIMIT_KG:  # type: ignore[operator]
            return 4900
        return 490 + 110 * math.ceil(product.weight_kg)  # type: ignore[arg-type]

    def sales_by_product(self) -> list[tuple[str, int]]:
        """Pieces sold of each product, best first; counts through every order there is."""
        sold: Counter[int] = Counter()
        for order in list(self.orders.values()):
            sold.update(order.lines)
        return [(self.products[number].title, amount) for number, amount in sold.most_common()]


class CartItem(BaseModel):
    """A product and how many of it."""

    product: int
    amount: int = 1


catalogue = APIRouter(prefix="/products")
ordering = APIRouter()
office = APIRouter()


def shop_of(request: Request) -> Shop:
    shop: Shop = request.app.state.shop
    return shop


def product_of(shop: Shop, number: int) -> Product:
    if number not in shop.products:
        raise HTTPException(404, "no such product")
    return shop.products[number]


@catalogue.get("")
async def list_products(request: Request, page: Annotated[int, Query(ge=1)] = 1) -> list[Product]:
    shop = shop_of(request)
    await shop.database.query(8)
    return list(shop.products.values())[(page - 1) * 20 : page * 20]


@catalogue.get("/{number}")
async def show_product(request: Request, number: int) -> Product:
    shop = shop_of(request)
    await shop.database.query(4)
    return product_of(shop, number)


@catalogue.get("/{number}/shipping")
async def show_shipping(request: Request, number: int) -> dict[str, int]:
    shop = shop_of(request)
    await shop.database.query(3)
    return {"cents": shop.shipping_cents(product_of(shop, number))}


@ordering.get("/search")
async def search(request: Request, q: str) -> list[Product]:
    shop = shop_of(request)
    words = q.lower().split()
    await shop.database.query(15 + 10 * len(words))  # no index: each word is one more pass
    return [product for product in shop.products.values() if all(word in product.title.lower() for word in words)]


@ordering.get("/carts/{cart}")
async def show_cart(request: Request, cart: str) -> dict[int, int]:
    shop = shop_of(request)
    await shop.database.query(3)
    return dict(shop.carts.get(cart, {}))


@ordering.post("/carts/{cart}/items", status_code=201)
async def add_to_cart(request: Request, cart: str, item: CartItem) -> dict[int, int]:
    shop = shop_of(request)
    product_of(shop, item.product)
    await shop.database.query(5)
    content = shop.carts.setdefault(cart, Counter())
    content[item.product] += item.amount
    return dict(content)


@ordering.post("/carts/{cart}/checkout", status_code=201)
async def checkout(request: Request, cart: str) -> dict[str, int]:
    shop = shop_of(request)
    content = shop.carts.pop(cart, None)
    if not content:
        raise HTTPException(400, "the cart is empty")
    try:
        order = await shop.buy(content)
    except OutOfStock as error:
        raise HTTPException(409, f"sold out: {error}") from error
    except CardDeclined as error:
        shop.carts[cart] = content
        raise HTTPException(402, "the card was declined") from error
    return {"order": order.id, "total_cents": order.total_cents}


@ordering.get("/orders/{number}")
async def show_order(request: Request, number: int) -> dict[str, int | str]:
    shop = shop_of(request)
    await shop.database.query(4)
    if number not in shop.orders:
        raise HTTPException(404, "no such order")
    order = shop.orders[number]
    return {"order": order.id, "status": order.status, "total_cents": order.total_cents}


@office.get("/reports/sales")
async def report_sales(request: Request) -> list[tuple[str, int]]:
    shop = shop_of(request)
    for _ in range(4):  # one query for each of the last quarters
        await shop.database.query(120)
    return await asyncio.to_thread(shop.sales_by_product)


@office.get("/export/orders.csv")
async def export_orders(request: Request) -> StreamingResponse:
    shop = shop_of(request)

    async def lines() -> AsyncIterator[str]:
        yield "order,status,total_cents\n"
        newest_first = sorted(shop.orders.values(), key=lambda order: -order.id)[:1000]
        for start in range(0, len(newest_first), 50):
            await shop.database.query(20)
            yield "".join(f"{o.id},{o.status},{o.total_cents}\n" for o in newest_first[start : start + 50])

    return StreamingResponse(lines(), media_type="text/csv")


@office.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


def create_app(store: str) -> FastAPI:
    """The shop as an application that records to ``store``."""
    metrics = Metrics(store, service="shop")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with metrics:
            shop = app.state.shop = Shop(metrics)
            staff = [asyncio.create_task(shop.fulfil_orders()) for _ in range(PACKERS)]
            staff.append(asyncio.create_task(shop.restock()))
            yield
            for task in staff:
                task.cancel()
            await asyncio.gather(*staff, return_exceptions=True)

    app = FastAPI(title="A small shop", lifespan=lifespan)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    for router in (catalogue, ordering, office):
        app.include_router(router)
    return app


def main() -> None:
    """Serve the shop until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tallymark.demo.shop", description="A small shop to be measured.")
    parser.add_argument("--store", default="./demo-metrics", help="where to record (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (%(default)s)")
    options = parser.parse_args()
    # Quiet: the failures of this shop are meant to be seen in what it records, not as tracebacks on the
    # terminal.
    uvicorn.run(
        create_app(options.store),
        host=options.host,
        port=options.port,
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
