"""Work on a GPU that is launched as a whole: a CUDA graph, recorded once the work has been done a few times."""

from collections.abc import Callable

import torch

WARM = 3  # times that it is done as usual first, in which libraries choose what they run and memory is found


class Captured:
    """Call it as often as the work is to be done, which reads and writes the same tensors each time.

    Nothing of it may ask the device for a number. Where recording fails, `failure` says why, and the work goes on
    being launched operator by operator.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.failure = ""
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._aside = torch.cuda.Stream()  # what was allocated on the stream of a recording stays its own

    def __call__(self) -> None:
        if self._graph is None and self._done >= WARM and not self.failure:
            self._record()
        if self._graph is not None:
            self._graph.replay()
            return
        self._done += 1
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            self.work()
        torch.cuda.current_stream().wait_stream(self._aside)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # of this thread alone: others decode images, and copy them to the device
            with torch.cuda.graph(graph, stream=self._aside, capture_error_mode="thread_local"):
                self.work()
        except RuntimeError as error:
            self.failure = str(error).partition("\n")[0]
            torch.cuda.synchronize()
            return
        self._graph = graph
