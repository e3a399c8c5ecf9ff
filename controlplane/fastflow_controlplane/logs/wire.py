"""The border between messages of the protocol and the plain values of this package."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

import grpc.aio
from fastflow.agent.v1 import attempts_pb2, gateway_pb2
from fastflow.v1 import logs_pb2, runs_pb2

from fastflow_controlplane.logs.follow import Piece
from fastflow_controlplane.logs.uploads import Answer, Chunk, PeerGone, Seal, Skip, Upload
from fastflow_controlplane.runs.model import AttemptKey, LogLoss


async def uploads(requests: AsyncIterable[gateway_pb2.UploadLogsRequest]) -> AsyncIterator[Upload]:
    """Translates what an agent sends; members of a later protocol are passed over."""
    async for request in requests:
        match request.WhichOneof("message"):
            case "chunk":
                chunk = request.chunk
                yield Chunk(_key(chunk.key), chunk.offset, chunk.data, chunk.crc32c)
            case "gap":
                gap = request.gap
                yield Skip(_key(gap.key), gap.offset, gap.offset + gap.bytes)
            case "seal":
                yield Seal(_key(request.seal.key), request.seal.end_offset)


def answering(
    write: Callable[[gateway_pb2.UploadLogsResponse], Awaitable[None]],
) -> Callable[[Answer], Awaitable[None]]:
    """Returns how `LogIngest.serve` sends answers over a stream that is written to with `write`."""

    async def send(answer: Answer) -> None:
        try:
            await write(answer_message(answer))
        except grpc.aio.InternalError as error:
            raise PeerGone from error

    return send


def answer_message(answer: Answer) -> gateway_pb2.UploadLogsResponse:
    """Translates an acknowledgement."""
    return gateway_pb2.UploadLogsResponse(
        run_id=answer.run_id,
        attempt=answer.attempt,
        durable_offset=answer.durable_offset,
        window_end=answer.window_end,
        sealed=answer.sealed,
        rejection=f"LOG_REJECTION_{answer.rejection}",
    )


def piece_message(piece: Piece) -> logs_pb2.ReadLogResponse:
    """Translates a part of a log."""
    return logs_pb2.ReadLogResponse(
        offset=piece.offset,
        data=piece.data,
        next_offset=piece.next_offset,
        attempt=piece.attempt,
        sealed=piece.sealed,
        losses=[loss_message(loss) for loss in piece.losses],
    )


def loss_message(loss: LogLoss) -> runs_pb2.LogLoss:
    """Translates a recorded loss."""
    message = runs_pb2.LogLoss(
        kind=f"LOG_LOSS_KIND_{loss.kind}",
        offset=loss.offset,
        bytes=loss.bytes,
        message=loss.message,
    )
    message.time.FromMicroseconds(loss.time)
    return message


def _key(key: attempts_pb2.AttemptKey) -> AttemptKey:
    return AttemptKey(key.run_id, key.attempt, key.claim_token)
