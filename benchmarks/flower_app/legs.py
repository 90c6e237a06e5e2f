"""A Flower app that does nothing, in Flower's usual way: rounds of messages of given sizes, whose bytes nobody reads.

`legs` are DOWN:UP, bytes for each node and from it, one after another. To `out` goes, for each round, when it ended and how long its legs
took. Bytes are random: Flower sends what is alike once.
"""

import json
import os
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.train()
def answer(message: Message, context: Context) -> Message:
    return Message(RecordDict({"content": _random(message.content.config_records["asked"]["bytes"])}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    while len(nodes := [*grid.get_node_ids()]) < config["nodes"]:
        time.sleep(1)
    rounds = []
    for _ in range(config["rounds"]):
        seconds = []
        for leg in config["legs"].split():
            down, up = map(int, leg.split(":"))
            began, content = time.time(), RecordDict({"content": _random(down), "asked": ConfigRecord({"bytes": up})})
            replies = list(grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in nodes]))
            assert len(replies) == len(nodes) and not any(reply.has_error() for reply in replies)
            seconds.append(time.time() - began)
        rounds.append({"ended": time.time(), "seconds": seconds})
    new = Path(f"{config['out']}.new")
    new.write_text(json.dumps(rounds))
    new.rename(config["out"])


def _random(size: int) -> ArrayRecord:
    return ArrayRecord({"bytes": Array("uint8", (size,), "bytes", os.urandom(size))})
