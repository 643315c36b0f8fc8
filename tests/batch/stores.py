"""An object store that speaks S3 over HTTP: moto's, in a thread, with faults to order."""

import logging
import threading
from collections import Counter

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Store:
    """A server on this machine, until `close`.

    Requests are answered one after the other: S3 promises that of two puts on a condition one succeeds, and
    moto's threads do not.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._answer = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.Lock()
        self.requests = []
        """Method and path of each."""
        self.fault = lambda number, method, path: False
        """Says whether the request of that number is refused."""
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _serve(self, environment, start_response):
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        with self._one_at_a_time:
            self.requests.append((method, path))
            if self.fault(len(self.requests), method, path):
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [SLOW_DOWN]
            return [b"".join(self._answer(environment, start_response))]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def puts(self, ending):
        """Count the puts of each object whose name ends so."""
        return Counter(path for method, path in self.requests if method == "PUT" and path.endswith(ending))

    def fetched(self, ending):
        """List the objects whose names end so and that somebody has fetched, by name."""
        asked = {path for method, path in self.requests if method == "GET" and path.endswith(ending)}
        return sorted(asked)
