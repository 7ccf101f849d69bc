"""Jobs for the tests of executors: workers import them."""

import os
import time

import tiny
import torch


class Work:
    """A job leaves a file of its name: process, number of threads, how many jobs this object has done, folder."""

    def __init__(self, folder):
        self.folder, self.done = folder, 0

    def __call__(self, name):
        self.done += 1
        kind, file = name.split()[0], self.folder / name
        if kind == "raises":
            while not any(path.read_text() for path in self.folder.glob("endless*")):
                time.sleep(0.01)
            raise ValueError("there is no data\nin the second line")
        if kind == "dies" or (kind == "stumbles" and not file.exists()):
            file.write_text("")
            os._exit(1)
        file.write_text("\n".join(map(str, (os.getpid(), torch.get_num_threads(), self.done, os.getcwd()))))
        if kind == "endless":
            time.sleep(600)
        if kind == "meets":  # ends when another one has begun
            while len(list(self.folder.glob("meets*"))) < 2:
                time.sleep(0.01)


def build(seed):
    torch.manual_seed(seed)
    return tiny.vit()[0]
