"""Messages between the processes of a sandbox: JSON behind its length, and descriptors next to it."""

import json
import os
import socket
import struct
from typing import Any

MAX_MESSAGE_BYTES = 16 << 20
HEADER = struct.Struct("<I")


class MessageError(Exception):
    """The received bytes are not a message, or one that is too long."""


def packed(message: object) -> bytes:
    """ASCII, so that lone surrogates of a program survive."""
    data = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(data)} bytes is longer than {MAX_MESSAGE_BYTES}")
    return HEADER.pack(len(data)) + data


class Channel:
    """One end of a stream of messages."""

    def __init__(self, connection: socket.socket, *, takes_descriptors: bool = False) -> None:
        self.socket = connection
        self.takes_descriptors = takes_descriptors
        self.received = bytearray()
        self.descriptors: list[int] = []

    def send(self, message: object, descriptors: list[int] | None = None) -> None:
        data = packed(message)
        if descriptors:
            sent = socket.send_fds(self.socket, [data], descriptors)
            data = data[sent:]
        self.socket.sendall(data)

    def receive(self) -> Any:
        """The next message. Raises EOFError if the other end is closed, and MessageError."""
        while (message := self.take()) is None:
            self.fill()
        return message[0]

    def fill(self) -> None:
        """Reads what is there, and waits if nothing is. Raises EOFError."""
        if self.takes_descriptors:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 16, 4)
            self.descriptors += descriptors
        else:
            data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError("the other end is closed")
        self.received += data

    def take(self) -> tuple[Any] | None:
        """A message that has been read completely, as the only item of a tuple. Raises MessageError."""
        if len(self.received) < HEADER.size:
            return None
        length = HEADER.unpack_from(self.received)[0]
        if length > MAX_MESSAGE_BYTES:
            raise MessageError(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}")
        end = HEADER.size + length
        if len(self.received) < end:
            return None
        data = bytes(self.received[HEADER.size : end])
        del self.received[:end]
        try:
            return (json.loads(data),)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"no JSON: {type(error).__name__}") from None

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.socket.close()
