import os
import threading

import pytest
from PIL import Image, ImageFile

from datasets.pillow import SETTINGS, Settings


def test_settings_are_restored_when_the_last_reader_leaves(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 77)
    settings = Settings()
    with settings.shared():
        with settings.shared():
            assert Image.MAX_IMAGE_PIXELS is None
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 77
    with pytest.raises(ZeroDivisionError), settings.lenient():
        assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (None, True)
        raise ZeroDivisionError
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (77, False)


def test_readers_share_and_a_lenient_one_is_alone():
    settings, order = Settings(), []
    inside, leave = threading.Event(), threading.Event()

    def lenient():
        with settings.lenient():
            order.append("lenient enters")
            inside.set()
            leave.wait(5)
            order.append("lenient leaves")

    def strict():
        with settings.shared():
            order.append("strict" if not ImageFile.LOAD_TRUNCATED_IMAGES else "accepts damage")

    first = threading.Thread(target=lenient)
    with settings.shared():
        first.start()
        assert not inside.wait(0.05)
        order.append("reader leaves")
    assert inside.wait(5)
    others = [threading.Thread(target=strict) for _ in range(3)]
    for thread in others:
        thread.start()
    others[0].join(0.05)
    leave.set()
    for thread in [first, *others]:
        thread.join(5)
    assert order == ["reader leaves", "lenient enters", "lenient leaves", "strict", "strict", "strict"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not():
    done = threading.Event()

    def reads():
        with SETTINGS.shared():
            done.wait(5)

    thread = threading.Thread(target=reads)
    thread.start()
    child = os.fork()
    if not child:
        with SETTINGS.lenient():
            os._exit(7)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
