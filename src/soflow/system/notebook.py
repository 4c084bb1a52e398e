"""Progress bars in a notebook: rich's bars as HTML, updated in place.

The live display of rich needs ipywidgets in a notebook. This one needs only IPython.
"""

import contextvars
import io
import threading
from collections.abc import Iterable
from uuid import uuid4

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID
from rich.text import Text

from soflow.system.text import clock

#: Seconds until bars appear, so that short tasks show none, and seconds between two updates.
PATIENCE, PAUSE = 0.5, 0.2
#: Width of a line in characters.
WIDTH = 110
FORMAT = '<pre style="margin: 0; line-height: normal; overflow-x: auto">{code}</pre>'


class NotebookBars(Progress):
    """Progress bars in the output of the current cell. At the end, one line of text remains."""

    def __init__(self, columns: Iterable[ProgressColumn]) -> None:
        super().__init__(*columns)
        self.id, self.shown, self.summary = uuid4().hex, "", ""
        self.ended = threading.Event()
        # A thread updates the bars, also during long steps. The context assigns its output to the
        # current cell.
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self._show_to_end,), daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()
        if self.shown:
            self._show(Text(self.summary))

    def remove_task(self, task_id: TaskID) -> None:
        """Removes a bar. The text of the last bar remains as a line."""
        if len(self.tasks) == 1:
            task = self.tasks[0]
            time = clock(task.elapsed or 0)
            shown = filter(None, (task.fields["text"], time))
            self.summary = f"{task.description}: {'  '.join(shown)}"
        super().remove_task(task_id)

    def _show_to_end(self) -> None:
        wait = PATIENCE
        while not self.ended.wait(wait):
            wait = PAUSE
            if self.tasks:
                self._show(self.get_renderable())

    def _show(self, content: object) -> None:
        """Displays rich content if it has changed."""
        from IPython.display import display

        console = Console(
            file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False,
            color_system="truecolor",
        )  # fmt: skip
        console.print(content, soft_wrap=isinstance(content, Text))
        html = console.export_html(inline_styles=True, code_format=FORMAT, clear=False)
        if html != self.shown:
            data = {"text/html": html, "text/plain": console.export_text()}
            display(data, raw=True, display_id=self.id, update=bool(self.shown))
            self.shown = html
