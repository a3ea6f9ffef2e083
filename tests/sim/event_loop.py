"""asyncio in virtual time: what ships as coroutines runs on the world's heap of events.

Only what the code under test asks of a loop is there. A task or callback that fails unexpectedly ends
the story.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from tests.sim.world import S, World

Connect = Callable[[Callable[[], Any], str], Awaitable[Any]]


class SimLoop(asyncio.AbstractEventLoop):
    """`connect` makes connections: protocol factory, host → (transport, protocol)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.stream("threads")
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order of creation
        self.connect: Connect | None = None

    # -- time and callbacks --------------------------------------------------------------------------

    def time(self) -> float:
        return self._world.now / S

    def _later(self, handle: asyncio.Handle, delay_us: int) -> asyncio.Handle:
        def run() -> None:
            if not handle.cancelled():
                handle._run()

        self._world.after(delay_us, run)
        return handle

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self._later(asyncio.Handle(callback, args, self, context), 0)

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        ahead = when - self.time()
        self._later(handle, max(1, math.ceil(ahead * S)) if ahead > 0 else 0)  # never too early
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time comes."""

    # -- tasks and futures ---------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.failure = error

    def run_in_executor(  # type: ignore[override]
        self, _executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """The work is done at once; its result comes a little later."""
        future = self.create_future()
        try:
            settle, result = future.set_result, func(*args)
        except Exception as error:
            settle, result = future.set_exception, error

        def answer() -> None:
            if not future.done():
                settle(result)

        self._world.after(int(self._random.random() * 500), answer)
        return future

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: str, port: int
    ) -> Any:
        assert self.connect is not None
        return await self.connect(protocol_factory, host)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._world.failure = context.get("exception") or AssertionError(context["message"])

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def cancel_tasks(self) -> None:
        """The story is over."""
        while self._tasks:
            for task in list(self._tasks):
                task.cancel()
            self._world.run(self._world.now + S)


@contextmanager
def event_loop_of(world: World) -> Iterator[SimLoop]:
    """`asyncio.get_running_loop()` is the loop of this world."""
    loop = SimLoop(world)
    asyncio._set_running_loop(loop)
    try:
        yield loop
    finally:
        asyncio._set_running_loop(None)
