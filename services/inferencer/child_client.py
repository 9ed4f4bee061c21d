"""Send orders to the long-lived child."""

from __future__ import annotations

from functools import partial

from services.inferencer.order import GenerationOrder
from shared.child.parent import ChildDied, OnRecord, Standby
from shared.child.records import AnyRecord, Done, Drawn
from shared.errors import Passing
from shared.monitoring.child import DRAWN


async def run_order(
    standby: Standby, order: GenerationOrder, on_record: OnRecord
) -> tuple[str, ...]:
    """Have the child carry out an order; the child is kept only if it ends with a final record.

    Returns the child's warnings.

    Raises:
        Refused, Passing: the order failed, or the child died.
        Exception: raised by ``on_record``.
    """
    try:
        child = await standby.ready()
        await child.order(order)
        last = await child.final_record(partial(_count, on_record))
    except ChildDied as error:
        raise Passing(str(error)) from error
    except BaseException:
        await standby.close()
        raise
    if not isinstance(last, Done):
        raise last.error()
    return tuple(last.summary.get("warnings", ()))


async def _count(on_record: OnRecord, record: AnyRecord) -> None:
    if isinstance(record, Drawn):
        DRAWN.inc()
    await on_record(record)
