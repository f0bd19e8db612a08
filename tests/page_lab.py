"""Serves the detector's page for a test, and sends requests to it."""

import json
import threading
import time
import urllib.error
import urllib.request

from detector_lab import known_detector

from keras_pneumo.data.radiographs.reading import find_files
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.viewer.decoding import Decoder
from keras_pneumo.viewer.guard import Keys, cookie_name
from keras_pneumo.viewer.page_answer import PageDetector
from keras_pneumo.viewer.readings import Readings
from keras_pneumo.viewer.server import listen, make_app, make_server


class Page:
    """A served page: its address, its folder's files, its csv."""

    def __init__(self, folders, readings, page_detector=None):
        self.listener = listen(0)
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.files = find_files(folders if isinstance(folders, list) else [folders]).files
        self.readings = Readings(readings)
        self.own = page_detector is None
        self.page_detector = page_detector or PageDetector(
            known_detector(classifier_model=build_classifier("resnet18")), Decoder()
        )
        self.keys = Keys()
        self.faults = []
        app = make_app(self.page_detector, self.files, self.readings, self.port, self.keys, self.failed)
        self.server = make_server(app, self.page_detector)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)

    def __enter__(self):
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)
        if self.own:
            self.page_detector.decoder.close()

    def failed(self, error):
        self.faults.append(error)
        return "The program has a fault."

    def ask(self, path, data=None, **headers):
        """Sends a request; gives status, headers and text of the answer. In names of headers, write _ for -."""
        sent = {"Cookie": f"{cookie_name(self.port)}={self.keys.cookie}"}
        sent |= {"Origin": self.address} if data is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.address + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def json(self, path, data=None, **headers):
        status, _, text = self.ask(path, data, **headers)
        return status, json.loads(text)
