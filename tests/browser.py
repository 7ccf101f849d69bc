"""A headless Chromium on pages served on loopback, where one is installed."""

import contextlib
import http.server
import shutil
import subprocess
import threading

import pytest


def phone(*names):
    """A page that shows others as wide as a phone; its body says by how many pixels the widest is too wide."""
    return framed(
        names,
        [360],
        """
      for (const part of page.querySelectorAll("details")) part.open = true;
      return page.documentElement.scrollWidth - page.documentElement.clientWidth;
    """,
    )


def framed(names, widths, measure):
    """A page that shows others at several widths; its body has as `data-excess` the largest number that they measure.

    Args:
        names: of the pages.
        widths: in pixels.
        measure: body of a JavaScript function of the document `page`.
    """
    frames = "".join(
        f'<iframe src="{name}" style="width:{width}px;height:800px"></iframe>' for name in names for width in widths
    )
    return f"""<!doctype html><title>framed</title>{frames}
<script>
addEventListener("load", () => {{
  const measure = page => {{ {measure} }};
  const excess = [...document.querySelectorAll("iframe")].map(frame => measure(frame.contentDocument));
  document.body.dataset.excess = Math.max(...excess);
}});
</script>"""


@contextlib.contextmanager
def serving(folder, profile):
    """`visit(name)` of a page in `folder`: its DOM, what the browser logged, and what it asked for."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def end_headers(self):
            # A test that writes a page anew within a second would be shown the old one.
            self.send_header("Cache-Control", "no-store")
            super().end_headers()

        def log_message(self, *args):
            pass

    def visit(name):
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            "--virtual-time-budget=2000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/{name}",
        ]  # fmt: skip
        asked.clear()
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], list(asked)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield visit
        finally:
            server.shutdown()
            thread.join()
