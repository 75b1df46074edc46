"""Messages to text to token ids: the tokenizer's chat template, or a plain layout for models that have none.

    renderer = Renderer(tokenizer, "my-model")
    renderer.ids((Message("user", "What is 2 + 2?"),))      # ends where the answer starts

Sampling, judging and training all render here, so that a model is trained on exactly what it was asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from selfjudge.errors import ModelError
from selfjudge.records import Message

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
CUT = " [...] "
PROBE = "answer-0"


class Renderer:
    """Renders for one tokenizer; `has_template` says whether the chat template is the model's own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, thinking: bool = False) -> None:
        """`thinking`: sampled answers may open with a thinking part, where the chat template knows one."""
        self.tokenizer = tokenizer
        self.name = name
        self.thinking = thinking
        self.has_template = tokenizer.chat_template is not None
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)) or "$.")

    def text(self, messages: Sequence[Message], answer_follows: bool = True, thinking: bool | None = None) -> str:
        """The conversation as the model reads it, up to where the next answer starts.

        A judge's question is rendered with `thinking` False: its answer is the very next token. Messages are data: a
        special token spelled out in one (`<|im_end|>`) is broken by a blank, so that it cannot end a turn.
        """
        turns = [{"role": message.role, "content": self._as_data(message.content)} for message in messages]
        template = None if self.has_template else PLAIN_TEMPLATE
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                chat_template=template,
                add_generation_prompt=answer_follows,
                tokenize=False,
                enable_thinking=self.thinking if thinking is None else thinking,
            )
        except TemplateSyntaxError as error:
            raise ModelError(f"{self.name}: its chat template cannot be read ({error})") from error
        except (TemplateError, TypeError) as error:
            roles = " ".join(message.role for message in messages)
            hint = "; move the system text into the user's turn" if "system" in roles else ""
            raise ModelError(f"{self.name}: its chat template refuses the turns `{roles}` ({error}){hint}") from error
        return str(text)

    def _as_data(self, content: str) -> str:
        return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", content)

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text; a chat template brings its special tokens, the plain layout gets the tokenizer's."""
        return self.tokenizer.encode(text, add_special_tokens=not self.has_template)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the prompt, ending where the answer starts."""
        return self.encode(self.text(messages))

    def response_ids(self, messages: Sequence[Message], response: str) -> tuple[list[int], list[int]]:
        """Ids of prompt and response for text that no model sampled here; the response ends with an end token.

        Raises ModelError where the template writes the prompt differently once an answer follows: training on it would
        then differ from what the model is asked at inference.
        """
        prompt = self.text(messages)
        whole = self.text([*messages, Message("assistant", response)], answer_follows=False)
        if self.has_template and not whole.startswith(prompt):
            raise ModelError(
                f"{self.name}: its chat template is not prefix-stable (the prompt changes once an answer follows); "
                "use a template whose generation prompt is the beginning of the assistant's turn"
            )
        start, answer = self.encode(prompt), self._as_data(response if self.has_template else " " + response)
        both = self.encode(prompt + answer)
        if both[: len(start)] == start:
            ids = both[len(start) :]  # in context: after a header, SentencePiece puts no blank before the first word
        else:
            ids = self.tokenizer.encode(answer, add_special_tokens=False)
        return start, [*ids, self._end(whole[len(prompt) :], response.strip())]

    def end_of_turn(self) -> int:
        """The token that ends an answer: the chat template's own, or the tokenizer's end token."""
        whole = self.text([Message("user", "question"), Message("assistant", PROBE)], answer_follows=False)
        return self._end(whole[whole.rindex(PROBE) :], PROBE)

    def follow_up(self, question: str) -> str:
        """What comes behind the text of an answer when the user's next turn is `question`, up to the next answer."""
        turns = [Message("user", "question"), Message("assistant", PROBE), Message("user", question)]
        whole = self.text(turns, thinking=False)
        return whole[whole.rindex(PROBE) + len(PROBE) :]

    def _end(self, turn: str, response: str) -> int:
        """The token that ends the assistant's turn: the template's own where it writes one, else the tokenizer's."""
        behind = turn[turn.find(response) + len(response) :].lstrip() if self.has_template else ""
        first = self.tokenizer.encode(behind, add_special_tokens=False)[:1]
        added = self.tokenizer.added_tokens_decoder
        if first and first[0] in added and added[first[0]].special:
            return first[0]
        return int(self.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids without special tokens; the blank that the plain layout puts first is dropped."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return text if self.has_template else text.removeprefix(" ")

    def cut_middle(self, text: str, num_tokens: int) -> str:
        """The text with its middle replaced by `[...]` so that about `num_tokens` tokens remain, half at each end."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= num_tokens:
            return text
        head, tail = max(num_tokens, 0) - max(num_tokens, 0) // 2, max(num_tokens, 0) // 2
        first = self.tokenizer.decode(ids[:head])
        last = self.tokenizer.decode(ids[len(ids) - tail :])
        return f"{first}{CUT}{last}"
