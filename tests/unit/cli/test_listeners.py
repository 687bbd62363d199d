"""What every connection has from the listener that accepted it."""

import socket

from amalgam.cli.connection_limits import SEND_BUFFER_BYTES, prepare_listener


def test_connections_send_small_pieces_at_once_and_keep_little_for_who_does_not_read() -> None:
    with socket.socket() as listener, socket.socket() as peer:
        prepare_listener(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        peer.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == 0, "why a loop does not see to it by itself"
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            # Linux takes twice as much as it is asked for.
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
