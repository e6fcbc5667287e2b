"""Builds, starts and stops all parts of the bridge.

The WebSocket server starts before the consumer, and ends after the consumer.
"""

import asyncio
import gc
import os
import secrets
import signal
import sys

import structlog

from bridge import __version__, logs
from bridge.amqp.consume.consumer import Consumer, ConsumerConfig
from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.consume.stream_reader import StreamConfig
from bridge.amqp.nodes import broker_nodes
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.status import State, Status
from bridge.authority import format_authority
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub import FLUSH_BYTES, TLS_FLUSH_BYTES, FlushListeners, Hub
from bridge.broadcast.hub_log import LOGGER as HUB_LOGGER
from bridge.broadcast.hub_log import HubLog
from bridge.broadcast.hub_metrics import register_hub_metrics, register_poll_metrics
from bridge.broadcast.polls import Polls
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.update_log import UpdateLog
from bridge.config.listen_addresses import announced_host, client_host, out_of_reach
from bridge.config.settings import HistoryMode, Settings
from bridge.config.warnings import setting_warnings
from bridge.contract import catalog
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.documents import asyncapi, openapi
from bridge.contract.documents.deployment import Deployment
from bridge.contract.filters import QueryParser
from bridge.contract.pipeline import Pipeline, Reason
from bridge.errors import ConfigurationError, redact
from bridge.loop_turn import LoopTurn, register_turn_metrics
from bridge.metrics import Metrics
from bridge.readiness import Readiness
from bridge.relay import Relay, UnflushedDeliveries, now_ms
from bridge.server import memory
from bridge.server.access.rules import Access, Rule
from bridge.server.http.pages import Pages
from bridge.server.listeners import descriptors
from bridge.server.listeners.sockets import address_unavailable, source_address
from bridge.server.router import Router
from bridge.server.server import Limits, Server
from bridge.server.tls import Tls
from bridge.source import SourceFactory, register_source_metrics
from bridge.systemd import SdNotifier
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge")


class Bridge:
    """The whole bridge in one process. The constructor needs a running event loop.

    A delivery takes this path: source -> relay -> hub -> update log -> sockets. A delivery that can't become an update
    takes the path source -> relay -> rejects. A handshake takes the path listener -> server -> router -> hub. The
    constructor creates the parts of each path in reverse order.
    """

    def __init__(self, settings: Settings, timing: Timing = DEFAULT, make_source: SourceFactory = Consumer) -> None:
        """Raises ConfigurationError if the schema files or the certificate can't be used."""
        self._settings = settings
        self._timing = timing
        self._schemas, self._tls = check(settings)
        self.metrics = metrics = Metrics()
        _init_labels(metrics, self._schemas)
        _log_warnings(settings, self._schemas)
        # If the bridge reads a stream, an update's id is its offset in the stream, and the first updates are older than
        # the bridge's start.
        reads_stream = settings.history is HistoryMode.STREAM

        # The path of a delivery

        update_log = UpdateLog(settings.log_bytes)
        index = ReplayIndex(update_log, None if reads_stream else secrets.randbits(32))
        unflushed = UnflushedDeliveries(metrics)
        turn = LoopTurn(asyncio.get_running_loop().call_soon)
        register_turn_metrics(metrics, turn)
        flow_control = FlowControl(settings.prefetch)
        polls = Polls(
            index,
            metrics,
            turn,
            asyncio.get_running_loop().call_later,
            asyncio.get_running_loop().time,
            lambda: self.is_consuming,
            lambda: self._hub.replaying,
        )
        self._hub = Hub(
            index,
            metrics,
            asyncio.get_running_loop().call_soon,
            asyncio.get_running_loop().call_later,
            asyncio.get_running_loop().time,
            now_ms,
            flush_listener=FlushListeners(unflushed, polls),
            source=self,
            turn=turn,
            flow_control=flow_control,
            heartbeat_s=settings.heartbeat_interval_s,
            flush_bytes=FLUSH_BYTES if self._tls is None else TLS_FLUSH_BYTES,
            replaying=reads_stream,
            trace=HubLog() if logs.traces(HUB_LOGGER) else None,
        )
        register_hub_metrics(metrics, self._hub, update_log)
        register_poll_metrics(metrics, polls)
        nodes = broker_nodes(settings.amqp_url, settings.amqp_url_file)
        self._rejects = RejectPublisher(
            nodes,
            settings.reject_exchange,
            settings.instance,
            flow_control,
            metrics,
            settings.wait,
            # Exclusive queues and streams don't redeliver unsettled events, so the bridge itself must keep the rejected
            # events that are still unsettled.
            max_kept=None if settings.queue else settings.prefetch,
            timing=timing,
        )
        relay = Relay(
            settings.exchanges,
            Pipeline(self._schemas, settings.max_message_bytes),
            DuplicateWindow(settings.duplicate_window),
            self._hub,
            unflushed,
            self._rejects,
            metrics,
            turn,
            replaying=reads_stream,
        )
        consumer_config = ConsumerConfig(
            nodes,
            tuple(settings.exchanges),
            settings.queue,
            f"edk-bridge@{settings.instance}",
            _stream_config(settings),
        )
        self._source = make_source(consumer_config, relay, flow_control, metrics, settings.wait, timing)
        register_source_metrics(metrics, self._source)

        # The path of a handshake

        self.readiness = Readiness(settings, self._source, self._rejects, lambda: len(self._hub))
        self._pages = Pages(self.readiness.report, metrics, self._schemas.documents, settings.path)
        access = Access(settings.allowed_networks, settings.allowed_hosts, settings.allowed_origins)
        router = Router(access, QueryParser(self._schemas), self._pages, settings.path)
        self._server = Server(
            self._hub, polls, access, router, _limits(settings), metrics, turn, now_ms, self._tls, timing
        )

        metrics.gauge("bridge_tasks", "Tasks in the event loop.", lambda: len(asyncio.all_tasks()))
        self.addresses: list[tuple[str, int]] = []
        """The addresses and ports on which the bridge listens. The list is empty until `start` is called."""
        self._source_task: asyncio.Task[None] | None = None
        self._rejects_task: asyncio.Task[None] | None = None
        """The task that publishes rejected events, or None until `start` is called."""

    @property
    def is_live(self) -> bool:
        """True if updates arrive as soon as they are published."""
        return self._source.is_live and self.is_consuming

    @property
    def is_consuming(self) -> bool:
        """True if the bridge has a working broker."""
        status = self._source.status
        return status.state is State.WORKING and status.is_fresh

    async def start(self) -> None:
        """Starts to listen, and then starts to consume.

        Raises AddressUnavailable if the bridge can't listen on an address.
        """
        settings = self._settings
        try:
            self.addresses = self._server.listen(settings.host, settings.port, settings.reuse_port)
        except OSError as error:
            raise address_unavailable(error) from error
        networks = settings.allowed_networks
        hosts = [address for address, _ in self.addresses]
        port = self.addresses[0][1]
        host = announced_host(hosts, networks, source_address)
        self._describe(host, port)
        has_clients = any(
            out_of_reach(each, networks) is None and client_host(each, networks, source_address) is not None
            for each in hosts
        )
        # The bridge logs a single line for all addresses, because a person needs only one address to open the page.
        _log.info(
            "listening",
            **(self._urls(host, port) if has_clients else {}),
            addresses=", ".join(hosts),
            port=port,
            version=__version__,
        )
        for address in hosts:
            if (lack := out_of_reach(address, networks)) is not None:
                _log.warning(
                    "no client can reach this address",
                    address=address,
                    reason=f"BRIDGE_ALLOWED_NETWORKS has {lack}",
                    hint="allow a network of its clients, or name other addresses in BRIDGE_HOST",
                )
        self._rejects_task = asyncio.create_task(self._rejects.run(), name="rejects")
        self._source_task = asyncio.create_task(self._source.run(), name="consumer")

    def _urls(self, host: str, port: int) -> dict[str, str]:
        """Returns the URLs of the live page and of the WebSocket endpoint, as log fields."""
        authority = format_authority(host, port)
        secure = "s" if self._tls else ""
        return {"page": f"http{secure}://{authority}/", "url": f"ws{secure}://{authority}{self._settings.path}"}

    def _describe(self, host: str, port: int) -> None:
        settings, schemas = self._settings, self._schemas
        deployment = Deployment(
            host=format_authority(host, port),
            secure=self._tls is not None,
            path=settings.path,
            exchanges=settings.exchanges,
            reject_exchange=settings.reject_exchange,
        )
        self._pages.describe(
            asyncapi.document(schemas.documents, schemas.filterable, deployment),
            openapi.document(schemas.documents, schemas.filterable, deployment),
        )

    async def wait_for_refusal(self) -> None:
        """Waits for a refusal by the broker that must end the program, and raises it as a BrokerRefusal."""
        assert self._source_task is not None
        assert self._rejects_task is not None
        both = (self._source_task, self._rejects_task)
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stops all parts in order, within the shutdown timeout.

        If the bridge has acknowledged an update to the broker, each client that keeps reading still gets this update.
        """
        deadline_s = asyncio.get_running_loop().time() + self._settings.shutdown_timeout_s
        self.readiness.stop()
        _log.info("stopping", connections=len(self._hub))
        self._server.stop_listening()
        self._source.stop()
        # The publisher of rejected events stops after the source, because the last deliveries may have to be rejected.
        await self._end(self._source_task, self._source.status)
        self._rejects.stop()
        await self._rejects.close()
        await self._server.drain(max(0.0, deadline_s - asyncio.get_running_loop().time()))
        await self._end(self._rejects_task, self._rejects.status)
        _log.info("stopped")

    async def _end(self, task: asyncio.Task[None] | None, status: Status) -> None:
        """Cancels a task that uses a connection to the broker.

        If the task's connection works, the task first has time to end by itself: at most BROKER_SHARE of the shutdown
        timeout.
        """
        if task is None:
            return
        share_s = BROKER_SHARE * self._settings.shutdown_timeout_s if status.state is State.WORKING else 0.0
        await asyncio.wait((task,), timeout=share_s)
        task.cancel()
        # The wait after the cancellation is bounded too, because a cancelled task may still wait until aiormq has
        # closed its connection.
        await asyncio.wait((task,), timeout=self._timing.end_timeout_s)

    def reload(self) -> None:
        """Reads the certificate and its key again (SIGHUP)."""
        if self._tls is None:
            _log.info("no certificate to reload (BRIDGE_TLS_CERTIFICATE is not set)")
            return
        try:
            self._tls.reload()
            _log.info("certificate reloaded")
        except OSError as error:
            _log.error("certificate not reloaded; the old one stays in use", error=str(error))


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

MIN_PER_ADDRESS = 16
"""The default limit on connections from one client address is never below this number."""

BROKER_SHARE = 0.5
"""The share of the shutdown timeout that the connections to the broker may take. The rest of the timeout is for the
clients."""


def _init_labels(metrics: Metrics, schemas: catalog.Catalog) -> None:
    # A client whose connection is closed because the bridge stops does not count as evicted.
    evictions = (reason.slug for reason in CloseReason if reason is not CloseReason.STOPPING)
    metrics.init_labels(schemas.types, Reason, evictions, Rule)


def _log_warnings(settings: Settings, schemas: catalog.Catalog) -> None:
    for each in schemas.warnings:
        _log.warning("schema file is probably wrong", file=each.file, pointer=each.pointer, detail=each.detail)
    for warning in setting_warnings(settings, memory.usable_bytes()):
        _log.warning(warning.phrase, **warning.fields)


def _stream_config(settings: Settings) -> StreamConfig | None:
    if settings.history is HistoryMode.MEMORY:
        return None
    return StreamConfig(
        settings.history_stream, settings.history_max_age_s, settings.history_max_bytes, settings.history_window
    )


def _limits(settings: Settings) -> Limits:
    capacity = descriptors.connection_capacity(settings.max_connections)
    descriptors.grow_descriptor_table(capacity)
    per_address = settings.max_connections_per_address
    if per_address is None:
        per_address = max(MIN_PER_ADDRESS, capacity.connections // 10)
    return Limits(
        capacity.connections,
        capacity.overflow,
        per_address or capacity.connections,
        settings.handshake_timeout_s,
        settings.idle_timeout_s,
        settings.ping_interval_s,
    )


def check(settings: Settings) -> tuple[catalog.Catalog, Tls | None]:
    """Loads the schema files and the certificate. Raises ConfigurationError if a file can't be used."""
    schemas = load_schemas(settings)
    for exchange, update_type in settings.exchanges.items():
        if update_type not in schemas.types:
            known = ", ".join(sorted(schemas.types))
            shown = redact(f"{exchange}={update_type}")
            raise ConfigurationError([f"BRIDGE_EXCHANGES: {shown}: there is no schema for this type; known: {known}"])
    return schemas, _tls(settings)


def _tls(settings: Settings) -> Tls | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    try:
        return Tls(settings.tls_certificate, settings.tls_key)
    except OSError as error:
        raise ConfigurationError([f"BRIDGE_TLS_CERTIFICATE, BRIDGE_TLS_KEY: {error}"]) from error


def load_schemas(settings: Settings) -> catalog.Catalog:
    """Loads the packaged schema files and those of the operator. Raises ConfigurationError if a file can't be used."""
    try:
        return catalog.load([catalog.PACKAGED, *((settings.schemas,) if settings.schemas else ())])
    except catalog.SchemaError as error:
        raise ConfigurationError([str(error)]) from error


async def serve(settings: Settings, timing: Timing = DEFAULT, make_source: SourceFactory = Consumer) -> None:
    """Runs the bridge until it gets SIGTERM or SIGINT. A second signal ends the bridge at once.

    Raises ConfigurationError, AddressUnavailable or BrokerRefusal, like the methods of Bridge.
    """
    loop = asyncio.get_running_loop()
    descriptors.raise_nofile_limit()
    memory.map_large_blocks()
    manager = SdNotifier(os.environ)
    stopping = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            # The handler ends the process itself, because it can't rely on the signal's default action: the kernel
            # skips this action for the first process of a container.
            os._exit(128 + number)
        stopping.set()

    def on_hangup() -> None:
        if settings.tls_certificate is None and sys.stderr.isatty():
            # Without a certificate, SIGHUP means that the bridge's terminal was closed.
            on_signal(signal.SIGHUP)
        else:
            manager.reloading()
            bridge.reload()
            manager.ready()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    bridge = Bridge(settings, timing, make_source)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    await bridge.start()
    # The objects that were created during startup live until the program ends. Without `gc.freeze`, a full garbage
    # collection would visit all objects from startup and block the loop for 10 ms. Reference counting frees the objects
    # of an update. Reference cycles are rare, so the garbage collector can run less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    failing = asyncio.create_task(bridge.wait_for_refusal(), name="failure")
    asked = asyncio.create_task(stopping.wait(), name="stop signal")
    watched = asyncio.create_task(manager.watch(), name="watchdog")
    manager.ready()
    await asyncio.wait([failing, asked], return_when=asyncio.FIRST_COMPLETED)
    failed = failing.done()
    manager.stopping()
    for task in (failing, asked):
        task.cancel()
    deadline_s = loop.time() + settings.shutdown_timeout_s
    await bridge.stop()
    await logs.written(max(timing.last_lines_s, deadline_s - loop.time()))
    watched.cancel()
    if failed:
        failing.result()
