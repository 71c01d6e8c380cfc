"""Which rings run: the one place where they are started and stopped, whatever message was the cause.

Source: vhost-user specification, "Ring states". :mod:`host.vhost_user.vring` has the states of one ring.
"""

from host.vhost_user.actions import Announce, Effects, LogRing, SendBackendRequest, StartRing, StopRing
from host.vhost_user.session import Session
from host.vhost_user.vring import Vring
from host.virtqueue.ring_place import RingLog
from host.virtqueue.virtqueue import RingFeatures
from protocol.errors import VhostUserError
from protocol.vhost_user import BackendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.virtio import LOG_ALL, DeviceStatus, FeatureBit, has_feature
from protocol.virtio_balloon import BalloonQueue


class RingControl:
    """Starts and stops the rings of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def halt(self, vring: Vring) -> Effects:
        """Stop ``vring`` until its next kick descriptor."""
        # A started ring that is configured again begins anew, and only a kick descriptor starts it: reading the old
        # place in between could take a driver's reused memory for a ring.
        yield from self.pause(vring)
        vring.started = vring.broken = vring.signal_first = False
        # With the last ring the driver is gone; the next one sets a poison value of its own before its first chain.
        session = self._session
        session.balloon.poison_settled &= any(each.started for each in session.vrings)

    def halt_all(self) -> Effects:
        """Stop every ring until its next kick descriptor."""
        for vring in self._session.vrings:
            yield from self.halt(vring)

    def pause(self, vring: Vring) -> Effects:
        """Stop ``vring`` if it runs; :meth:`run_wanted` may let it go on where it was, if it is not found broken."""
        if not vring.running:
            return
        base = yield StopRing(vring.index)
        assert base is not None
        vring.running, vring.base, vring.resumes = False, base, True
        if vring.broken:
            yield from self._need_reset()

    def pause_all(self) -> Effects:
        """Stop every ring that runs."""
        for vring in self._session.vrings:
            yield from self.pause(vring)

    def run_wanted(self, asked: Vring | None = None) -> Effects:
        """Bring every ring that should run and can run to running.

        One whose memory is not there is parked, which refuses the message only if it asked for this very ring.

        Raises:
            VhostUserError: ``asked`` cannot run.
        """
        session = self._session
        set_up = {vring.index for vring in session.vrings if vring.is_set_up}
        running = {vring.index for vring in session.vrings if vring.running}
        if session.queue_numbers.learn(set_up, running, negotiated=session.features, offered=session.offered):
            yield Announce("queue_numbers", {"dialect": session.queue_numbers.dialect.value})
        for vring in session.vrings:
            if vring.running or not vring.is_wanted:
                continue
            try:
                queue = session.queue_numbers.role(
                    vring.index, set_up, negotiated=session.features, offered=session.offered
                )
            except VhostUserError as error:
                yield from self._park(vring, str(error))
                continue
            if queue is None:
                dialect = session.queue_numbers.dialect.value
                yield from self._park(vring, f"there is no queue {vring.index} by the {dialect} numbers")
                continue
            try:
                start = self._start_ring(vring, queue)
                yield start
            except VhostUserError as error:
                yield from self._park(vring, str(error))
                if vring is asked:
                    raise
            else:
                vring.running, vring.parked, vring.signal_first = True, None, False
                vring.recovers, vring.log = False, start.log
        yield from self.tell_news()

    def tell_news(self) -> Effects:
        """Tell the driver to look at the configuration space and the device status, if there is something in one of
        them that it has not heard of and can be told now."""
        session = self._session
        if not session.hears_of_config:
            return
        config = session.config_news and any(vring.running for vring in session.vrings)
        # A ring that broke is still started. With all of them stopped the device is suspended, and sends nothing.
        status = session.status_news and session.has_driver_ok and any(vring.started for vring in session.vrings)
        if config or status:
            session.config_news = False
            session.status_news &= not status
            yield SendBackendRequest(build_message(BackendRequest.CONFIG_CHANGE_MSG))

    def _need_reset(self) -> Effects:
        # virtio 1.2, 2.1.2. A front-end without the feature keeps a status of its own, and hears of the ring alone.
        session = self._session
        if session.status & DeviceStatus.DEVICE_NEEDS_RESET:
            return
        session.status |= DeviceStatus.DEVICE_NEEDS_RESET
        session.status_news = True
        if session.has_protocol_feature(ProtocolFeature.STATUS):
            yield Announce("status", {"status": int(session.status)})
        yield from self.tell_news()

    def relog(self) -> Effects:
        """Have the writes of each running ring logged as the features and its address now say. Nothing else changes:
        a front-end that begins to move a virtual machine says so while the rings run."""
        for vring in self._session.vrings:
            if vring.running and vring.log != (log := self._log_of(vring)):
                yield LogRing(vring.index, log)
                vring.log = log

    def _log_of(self, vring: Vring) -> RingLog | None:
        if not self._session.features & LOG_ALL:
            return None
        return vring.log_places(self._session.table, packed=self._session.packed)

    @staticmethod
    def _park(vring: Vring, reason: str) -> Effects:
        if reason != vring.parked:
            vring.parked = reason
            yield Announce("queue_stopped", {"queue": vring.index, "reason": reason})

    def _start_ring(self, vring: Vring, queue: BalloonQueue) -> StartRing:
        features = self._session.features
        return StartRing(
            index=vring.index,
            queue=queue,
            place=vring.place(self._session.table, packed=self._session.packed),
            base=self.base_of(vring),
            signal_first=vring.signal_first,
            resumes=vring.resumes,
            recovers=vring.recovers,
            log=self._log_of(vring),
            inband=self._session.has_protocol_feature(ProtocolFeature.INBAND_NOTIFICATIONS),
            features=RingFeatures(
                event_idx=has_feature(features, FeatureBit.RING_EVENT_IDX),
                indirect_desc=has_feature(features, FeatureBit.RING_INDIRECT_DESC),
                packed=has_feature(features, FeatureBit.RING_PACKED),
                in_order=has_feature(features, FeatureBit.IN_ORDER),
            ),
        )

    def base_of(self, vring: Vring) -> int:
        """Return the base from which ``vring`` goes on: 16 bits of a split ring, 32 bits of a packed one.

        What a packed base of 0 means only the ring itself can tell (:mod:`host.virtqueue.packed_virtqueue`).
        """
        return vring.base if self._session.packed else vring.base & 0xFFFF  # the upper bits are reserved

    def ring_broke(self, index: int) -> Effects:
        """Take note that the driver broke the rules of ring ``index``: it stops until it is set up anew, and the device
        needs a reset from then on."""
        vring = self._session.vrings[index]
        vring.broken = True
        yield from self.pause(vring)
