#!/usr/bin/env python3
"""Reads the files for TensorBoard with TensorBoard's own reader and plugins, of PyPI's `tensorboard`, without TensorFlow.

    python3 tests/tensorboard_files.py

Needs tensorboard and pillow from PyPI in the environment of this Python. TELAR_TENSORBOARD names the example program
`tensorboard` if it is built already; otherwise cargo builds it.
"""

import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import numpy
    from PIL import Image
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, event_accumulator, plugin_event_multiplexer
    from google.protobuf import text_format
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.projector import projector_plugin
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
    from tensorboard.util import tensor_util
    from werkzeug.test import EnvironBuilder
    from werkzeug.wrappers import Response
except ImportError as error:
    sys.exit(f"expected the module {error.name}, found none in {sys.executable}: install tensorboard and pillow from PyPI")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = [os.environ["TELAR_TENSORBOARD"]] if "TELAR_TENSORBOARD" in os.environ else [
    "cargo", "run", "--quiet", "--package", "observe", "--example", "tensorboard", "--"]
TIME = 1_790_000_000
# The reader warns of what it drops, which is what is tested.
logging.disable(logging.WARNING)


class TensorBoard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name, "tensorboard")
        picture = Path(folder.name, "picture.png")
        Image.new("L", (28, 14), 128).save(picture)
        cls.png = picture.read_bytes()
        subprocess.run([*EXAMPLE, cls.folder, picture], cwd=ROOT, check=True)
        cls.train, cls.validation = cls.read("train"), cls.read("validation")

    @classmethod
    def read(cls, run):
        accumulator = event_accumulator.EventAccumulator(str(cls.folder / run), size_guidance={
            event_accumulator.SCALARS: 0, event_accumulator.IMAGES: 0, event_accumulator.TENSORS: 0})
        return accumulator.Reload()

    def scalars(self, accumulator, tag):
        return [(event.step, event.value) for event in accumulator.Scalars(tag)]

    def test_scalars_of_steps_are_read(self):
        self.assertEqual(self.train.Tags()["scalars"], ["loss", "accuracy", "samples_per_second", "milliseconds"])
        self.assertEqual(self.scalars(self.train, "accuracy"), [(step, step / 8) for step in range(1, 9)])
        self.assertEqual(self.scalars(self.train, "samples_per_second"), [(step, 16000) for step in range(1, 9)])
        self.assertEqual([event.wall_time for event in self.train.Scalars("loss")],
                         [TIME + seconds for seconds in (1, 2, 3, 4, 15, 16, 17, 18)])

    def test_steps_of_the_former_process_after_the_checkpoint_are_dropped(self):
        self.assertEqual(self.scalars(self.train, "loss"), [(step, 0.5 if step <= 4 else 0.25) for step in range(1, 9)])
        self.assertEqual(self.scalars(self.validation, "loss"), [(2, 0.5), (4, 0.5), (8, 0.25)])

    def test_training_and_validation_share_tags(self):
        self.assertEqual(self.validation.Tags()["scalars"], ["loss", "accuracy"])

    def test_pictures_are_decoded(self):
        images = self.validation.Images("reconstructions")
        self.assertEqual([(image.step, image.width, image.height) for image in images], [(step, 28, 14) for step in (2, 4, 8)])
        for image in images:
            self.assertEqual(image.encoded_image_string, self.png)
            self.assertEqual(Image.open(io.BytesIO(image.encoded_image_string)).size, (28, 14))

    def plugin_data(self, logdir=None):
        logdir = str(logdir or self.folder)
        multiplexer = plugin_event_multiplexer.EventMultiplexer()
        multiplexer.AddRunsFromDirectory(logdir)
        multiplexer.Reload()
        return data_provider.MultiplexerDataProvider(multiplexer, logdir)

    def ask(self, plugin, route, **arguments):
        """What the plugin answers a browser."""
        environment = EnvironBuilder(path=route, query_string=arguments).get_environ()
        answer = Response.from_app(plugin.get_plugin_apps()[route], environment)
        self.assertEqual(answer.status_code, 200, answer.get_data())
        return answer.get_data()

    def test_settings_are_a_table_for_the_text_plugin(self):
        self.assertEqual(self.train.PluginTagToContent("text"), {"settings": b""})
        [event] = self.train.Tensors("settings")
        table = tensor_util.make_ndarray(event.tensor_proto).item()
        self.assertEqual(table.decode(), "| setting | value |\n|---|---|\n| arch | denoising |\n| bar | a\\|b |\n")

    def test_plugins_of_scalars_images_and_text_have_data(self):
        provider = self.plugin_data()
        ask = {"experiment_id": ""}
        ctx = context.RequestContext()
        scalars = provider.list_scalars(ctx, plugin_name="scalars", **ask)
        self.assertEqual(set(scalars), {"train", "validation"})
        self.assertIn("loss", scalars["train"])
        self.assertIn("loss", scalars["validation"])
        self.assertEqual(list(provider.list_blob_sequences(ctx, plugin_name="images", **ask)["validation"]), ["reconstructions", "codes"])
        self.assertEqual(list(provider.list_tensors(ctx, plugin_name="text", **ask)["train"]), ["settings"])

    def test_each_picture_has_a_tag(self):
        self.assertEqual(self.validation.Tags()["images"], ["reconstructions", "codes"])
        self.assertEqual([image.step for image in self.validation.Images("codes")], [8])

    def test_projector_has_the_newest_codes_with_their_labels(self):
        config = text_format.Parse((self.folder / "validation" / "projector_config.pbtxt").read_text(), ProjectorConfig())
        [embedding] = config.embeddings
        self.assertEqual(embedding.tensor_name, "codes")
        labels = (self.folder / "validation" / embedding.metadata_path).read_text().splitlines()
        self.assertEqual(labels, ["T-shirt/top", "Ankle boot", "Ankle boot", "a b"])

        # As the plugin itself reads them, wherever TensorBoard is pointed: at the run folder's `tensorboard`, or at all runs.
        for logdir, run in ((self.folder, "validation"), (self.folder.parent, "tensorboard/validation")):
            with self.subTest(run):
                context_of_all = base_plugin.TBContext(logdir=str(logdir), data_provider=self.plugin_data(logdir))
                plugin = projector_plugin.ProjectorPlugin(context_of_all)
                self.assertEqual(json.loads(self.ask(plugin, "/runs")), [run])
                [info] = json.loads(self.ask(plugin, "/info", run=run))["embeddings"]
                self.assertEqual(info["tensorShape"], [len(labels), 3])
                answer = self.ask(plugin, "/tensor", run=run, name="codes")
                values = numpy.frombuffer(answer, dtype="float32").reshape(len(labels), -1)
                numpy.testing.assert_array_equal(values.ravel(), numpy.float32(0.1) * numpy.arange(12, dtype="float32"))
                self.assertEqual(self.ask(plugin, "/metadata", run=run, name="codes").decode().splitlines(), labels)


if __name__ == "__main__":
    unittest.main()
