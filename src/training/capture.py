"""Work on a GPU that is launched as a whole: a CUDA graph, recorded once the work has been done a few times."""

from collections.abc import Callable

import torch

from src.core.text import in_line

WARM = 3  # times that it is done as usual first, in which libraries choose what they run and memory is found


class Captured:
    """Call it as often as the work is to be done, which reads and writes the same tensors each time.

    Nothing of it may ask the device for a number. Where recording fails, `told` hears why, and the work goes on being
    launched operator by operator.
    """

    def __init__(
        self, work: Callable[[], None], device: torch.device, told: Callable[[str], None] = lambda text: None
    ) -> None:
        self.work, self.device, self.told = work, device, told
        self.failure = ""
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._aside = torch.cuda.Stream(device)  # what was allocated on the stream of a recording stays its own

    def __call__(self) -> None:
        with torch.cuda.device(self.device):  # streams are those of the current one of several
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
            self.failure = in_line(str(error).partition("\n")[0])
            self.told(f"note: a step is launched operator by operator, since it cannot be recorded: {self.failure}")
            torch.cuda.synchronize()
            return
        self._graph = graph
