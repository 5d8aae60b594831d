"""Whether the Hugging Face Hub answers, asked once and quickly: a missing network is a sentence, not a hang."""

from __future__ import annotations

import functools
import threading
import urllib.error
import urllib.request

from huggingface_hub import constants


@functools.cache
def hub_answers(timeout: float = 5.0) -> bool:
    """Whether the Hub can be reached from here.

    Args:
        timeout: seconds to wait for an answer. The question is asked in a thread of its own, because a name server
            that does not answer ignores the timeout of the connection.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout).close()
        except urllib.error.HTTPError:
            answered.set()  # an answer, if an unfriendly one
        except OSError:
            return
        else:
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def require_hub(what: str, instead: str) -> None:
    """Say in one line that the Hub is needed and does not answer. In offline mode the cache is left to answer.

    Args:
        what: flag and value that need the Hub, such as "task_name 'rte'".
        instead: what would be right without a network.

    Raises:
        ValueError: the Hub cannot be reached and HF_HUB_OFFLINE is not set.
    """
    if constants.HF_HUB_OFFLINE or hub_answers():
        return
    raise ValueError(
        f"{what}: the Hub ({constants.ENDPOINT}) does not answer; connect to the network, or {instead}, or set "
        f"HF_HUB_OFFLINE=1 if it is in the local cache already"
    )
