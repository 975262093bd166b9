"""What becomes of rows for which there is no room: their sessions break, and go on over another chain.

Waiting for room would hold up everybody else's rows behind them; dropping them without a word would leave the session
to a deadline."""

from __future__ import annotations

from client.agent.events import RowsRefused
from client.agent.switch import Leg, Switch
from protocol.frames import Segment, decode_frame
from protocol.messages import SessionBroken


def broken_by(switch: Switch, refused: RowsRefused) -> list[SessionBroken]:
    """The sessions of this node that lost rows, each once. The frame is one of ours, or was checked before."""
    legs = {}
    for segment in decode_frame(refused.data).segments:
        for leg in switch.legs_of(segment.session_id):
            if _is_of(segment, leg, refused.is_leaving):
                legs[segment.session_id, leg.stage] = leg
    code, sentence = _CAUSES[refused.is_leaving]
    return [SessionBroken(session_id, leg.epoch, leg.stage, code, sentence) for (session_id, _), leg in legs.items()]


def _is_of(segment: Segment, leg: Leg, is_leaving: bool) -> bool:
    return leg.epoch == segment.epoch and segment.stage == (leg.next.stage if is_leaving else leg.stage)


_CAUSES = {
    True: ("link_full", "The way to the next node is slower than what goes there."),
    False: ("device_full", "More rows wait for this device than it can take."),
}
