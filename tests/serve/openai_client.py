#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""openai_client.py ESPALIER MODEL PICTURE: the official client of OpenAI against `espalier serve`. Ends with 77 (skipped) where the
package is not there."""
import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

from served import served, skip

try:
    import openai
except ImportError as missing:
    skip(missing)

espalier, model, picture = (str(pathlib.Path(path).resolve()) for path in sys.argv[1:4])
uri = "data:image/png;base64," + base64.b64encode(pathlib.Path(picture).read_bytes()).decode()
port = None


def generate(messages, *more):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(messages, file)
        file.flush()
        command = [espalier, "generate", "--json", "--model", model, "--chat", file.name, "--greedy", "--max-new-tokens", "16"]
        return json.loads(subprocess.run([*command, *more], check=True, capture_output=True, text=True).stdout)


class OpenAiClient(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        self.model = self.client.models.list().data[0].id

    def turns(self):
        image = {"type": "image_url", "image_url": {"url": uri, "detail": "auto"}}
        return [
            {"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": "a picture"},
            {"role": "user", "content": [image, {"type": "text", "text": "And this?"}]},
        ]

    def files(self):
        turns = self.turns()
        for turn in turns:
            if isinstance(turn["content"], list):
                turn["content"][0] = {"type": "image", "path": picture}
        return turns

    def ask(self, **more):
        more = {"messages": self.turns(), "max_tokens": 16, "temperature": 0} | more
        return self.client.chat.completions.create(model=self.model, **more)

    def test_chat_with_pictures_and_earlier_turns(self):
        answer = self.ask(extra_body={"pruning": "catp:keep_ratio=1/3"})
        expected = generate(self.files(), "--policy", "catp:keep_ratio=1/3")
        self.assertEqual(answer.choices[0].message.content, expected["text"])
        self.assertEqual(answer.usage.prompt_tokens, expected["stats"]["prompt_tokens"])
        self.assertGreater(answer.usage.prompt_tokens_details.pruned_tokens, 0)

    def test_stream(self):
        text, usage = "", None
        for chunk in self.ask(stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
        self.assertEqual(text, self.ask().choices[0].message.content)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_logprobs_and_samples(self):
        answer = self.ask(logprobs=True, top_logprobs=2, n=2, temperature=1.0, seed=3)
        self.assertEqual(len(answer.choices), 2)
        for choice in answer.choices:
            self.assertEqual(len(choice.logprobs.content[0].top_logprobs), 2)

    def test_stop_string(self):
        whole = self.ask(extra_body={"ignore_eos": True}).choices[0].message.content
        stop = whole[len(whole) // 2 :][:2]
        answer = self.ask(stop=stop, extra_body={"ignore_eos": True}).choices[0]
        self.assertEqual(answer.message.content, whole[: whole.index(stop)])
        self.assertEqual(answer.finish_reason, "stop")

    def test_completion(self):
        answer = self.client.completions.create(model=self.model, prompt="USER: Hello ASSISTANT:", max_tokens=4, temperature=0)
        self.assertEqual(answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage.total_tokens)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.ask(extra_body={"prunning": "none"})
        self.assertEqual((refused.exception.code, refused.exception.param), ("unknown_field", "prunning"))
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="other", messages=self.turns())
        with self.assertRaises(openai.BadRequestError):  # before the stream begins
            list(self.ask(stream=True, max_tokens=10_000_000))


with served(espalier, "--model", model) as (_, port):
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(
        unittest.defaultTestLoader.loadTestsFromTestCase(OpenAiClient)
    )
if not result.wasSuccessful():
    sys.exit(1)
