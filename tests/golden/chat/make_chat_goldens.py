# SPDX-License-Identifier: Apache-2.0
"""Makes cases.json: chat templates, messages, and the text that Transformers' Jinja environment renders from them.

    python make_chat_goldens.py FOLDER-OF-TINY-CHECKPOINTS

The four families' templates are read from the tiny checkpoints; published forms and pieces of Jinja are below.
"rejects": Jinja itself raises. "begins": byte offsets of the user turns, found by searching the text for the words that the
family puts in front of a user turn, not by looking at how the template ran.
"""
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = Path(__file__).parent
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def turn(role, *parts):
    return {"role": role, "content": [text(p) if isinstance(p, str) else p for p in parts]}


CHATS = {
    "single": [turn("user", IMAGE, "What is shown?")],
    "text only": [turn("user", "Hello, world")],
    "shots": [turn("user", IMAGE, "Shot 0?"), turn("assistant", "yes"), turn("user", IMAGE, "Shot 1?"),
              turn("assistant", "no"), turn("user", IMAGE, "Query?")],
    "system": [turn("system", "Be brief."), turn("user", "First", IMAGE, "second", IMAGE, "third?"),
               turn("assistant", "Fine."), turn("user", "And now?")],
    "odd text": [turn("user", IMAGE, "  spaces \n\u00e9\u4f60\U0001f600 {{ x }} {% if %} <image> USER: \\n \u00a0"),
                 turn("assistant", "\u2003ok\u2003 "), turn("user", "USER: again [INST] <|im_start|>user\n")],
    "same twice": [turn("user", "Same"), turn("assistant", "a"), turn("user", "Same"), turn("assistant", "b"),
                   turn("user", "Same")],
    "answer last": [turn("user", IMAGE, "Q"), turn("assistant", "The answer")],
    "two users": [turn("user", "one"), turn("user", IMAGE, "two")],
}

LLAVA_PUBLISHED = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}")
MISTRAL_PUBLISHED = (  # with its <\s> for </s>
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\\n' + message['content'][0]['text'] + "
    "'\\n<</SYS>>\\n\\n' }}{% elif message['role'] == 'user' %}{{ '[INST] ' }}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}{% for content in message['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}{{' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '<\\s> '}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
LLAMA2_STYLE = """{%- if messages[0]['role'] == 'system' -%}
    {%- set loop_messages = messages[1:] -%}
    {%- set system_message = messages[0]['content'][0]['text'] -%}
{%- else -%}
    {%- set loop_messages = messages -%}
    {%- set system_message = none -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if loop.first -%}{{- bos_token -}}{%- endif -%}
    {%- set words = (message.content | selectattr('type', '==', 'text') | map(attribute='text') | join(' ')) -%}
    {%- if loop.index0 == 0 and system_message is not none -%}
        {%- set words = '<<SYS>>\\n' ~ system_message ~ '\\n<</SYS>>\\n\\n' ~ words -%}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {{- '[INST] ' + words | trim + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' ~ words.strip() ~ ' ' ~ eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
FIRST_LOOKS = """{% set ns = namespace(last=-1, images=0) %}
{% for m in messages %}
    {% if m.role == "user" %}{% set ns.last = loop.index0 %}{% endif %}
{% endfor %}
{{ bos_token }}{% for m in messages %}
<|{{ m.role }}|>
    {% for c in m.content %}
        {% if c.type == 'image' %}{% set ns.images = ns.images + 1 %}
[{{ ns.images }}]{% elif 'text' in c %}
{{ c.text | trim }}{% endif %}
    {% endfor %}
{% if loop.index0 == ns.last %} (last){% endif +%}
{% endfor %}
"""

# Pieces of Jinja. Each is rendered over every chat.
PIECES = {
    "trim blocks": "a\n{% if true %}\n  b\n{% endif %}\nc\n",
    "lstrip blocks": "a\n   {% if true %}x{% endif %}\n\t{# note #}  \n  {{ 'y' }}\n",
    "tag behind text": "a {% if true %} b {% endif %} c",
    "minus signs": "a \n {%- if true -%} \n b \n {%- endif -%} \n c {{- ' d ' -}} \n e {#- note -#} \n f",
    "plus signs": "a\n  {%+ if true %}b\n  {% endif +%}\nc{#+ x +#}\nd",
    "minus and unicode space": "a\u00a0\u3000{%- if 1 -%}\u2003b{% endif %}",
    "one newline at the end goes": "x\n\n",
    "carriage returns": "a\r\n{% if 1 %}\r\nb\rc{% endif %}\r\n",
    "escapes": r"""{{ 'a\nb\t\\ \' " \x41 \u00e9 \U0001F600 \s \d \q' }}{{ "it's \"q\"" }}""",
    "adjacent strings": "{{ 'a' 'b' \"c\" }}",
    "numbers": "{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 - 3 - 4 }} {{ -3 }} {{ +4 }}",
    "comparisons": "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 1 == true }} {{ '1' == 1 }} {{ 2 >= 2 }} {{ none == none }}",
    "and or not": "{{ 'a' and 'b' }}{{ '' or 'c' }}{{ not '' }}{{ not 1 and 0 }}{{ 0 or '' or 'z' }}{{ not (1 and 0) }}",
    "in": "{{ 'a' in 'cat' }} {{ 'x' not in ['y'] }} {{ 1 in [1, 2] }} {{ 'k' in {'k': 1} }} {{ 'a' in missing }}",
    "conditional": "{{ 'a' if 1 else 'b' }}{{ 'c' if 0 }}{{ 'd' if 0 else 'e' if 0 else 'f' }}",
    "concatenation": "{{ 'a' ~ 1 ~ true ~ none ~ missing }}{{ 1 ~ 2 }}{{ 1 + 2 ~ 3 if 0 else 'z' }}",
    "printing": "{{ true }} {{ false }} {{ none }} {{ missing }} {{ 12 }}",
    "set and scope": "{% set x = 1 %}{% for i in range(3) %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}{% if 1 %}{% set x = 9 %}{% endif %}{{ x }}",
    "namespace": "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.missing }}",
    "unpacking": "{% set a, b = (1, 2) %}{{ a }}{{ b }}{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }};{% endfor %}",
    "loop variable": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if loop.nextitem }};{% endfor %}",
    "for if else": "{% for m in messages if m.role == 'system' %}{{ loop.index }}{{ m.role }}{% else %}none{% endfor %}",
    "nested loops": "{% for i in range(3) %}{% for j in range(i) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}|{% endfor %}",
    "for over string and dict": "{% for c in 'a\u00e9b' %}{{ c }}.{% endfor %}{% for k in {'x': 1} %}{{ k }}{% endfor %}{% for x in missing %}!{% endfor %}",
    "range": "{% for i in range(2, 8, 3) %}{{ i }}{% endfor %}{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
    "subscripts": "{{ messages[0]['role'] }}{{ messages[-1].role }}{{ 'h\u00e9llo'[1] }}{{ [1, 2][5] }}{{ (4, 5)[1] }}{{ {'a': {'b': 3}}.a.b }}{{ {'a': {'b': 3}}['a']['b'] }}",
    "slices": "{{ 'h\u00e9llo'[1:3] }}{{ 'hello'[::-1] }}{{ 'hello'[-3:] }}{{ 'hello'[:-1] }}{{ messages[1:] | length }}{{ [1, 2, 3, 4][::2] | join(',') }}{{ 'hello'[9:] }}{{ 'hello'[3:1:-1] }}",
    "string methods": "{{ ' a b '.strip() }}{{ ' a'.lstrip() }}{{ 'a '.rstrip() }}{{ 'aB'.upper() }}{{ 'aB'.lower() }}{{ 'hELLO wORLD'.capitalize() }}{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('x') }}{{ 'a-b-c'.replace('-', '+') }}{{ 'a,b,,c'.split(',') | join('|') }}{{ ' a  b '.split() | join('|') }}{{ '-'.join(['x', 'y']) }}{{ 'a</think>b'.split('</think>')[-1] }}",
    "dict methods": "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 7) }}{{ {'a': 1, 'b': 2}.keys() | join }}{{ {'a': 1, 'b': 2}.values() | join('-') }}",
    "filters": "{{ ' \u00a0x \u3000'|trim }}{{ 'abc'|length }}{{ '\u4f60\u597d'|length }}{{ [1,2]|count }}{{ 'ab'|upper }}{{ 'AB'|lower }}{{ 'hELLO'|capitalize }}{{ [3,4]|first }}{{ [3,4]|last }}{{ [1,'a',none]|join('.') }}{{ 'a.b'|replace('.', '-') }}{{ 5|string ~ 'x' }}{{ 'ab'|list|join('/') }}{{ []|first }}{{ missing|length }}{{ none|trim }}",
    "default": "{{ missing | default('d') }}{{ '' | default('d') }}{{ '' | default('d', true) }}{{ none | d('x', boolean=true) }}{{ missing | default }}{{ messages[0].nothing | default('n') }}",
    "filter precedence": "{{ 'a' + 'b' | upper }}{{ ('a' + 'b') | upper }}{{ 'a' ~ 'b'|upper ~ 'c' }}{{ -1 | string }}{{ 'x' in ['X'|lower] }}",
    "tojson": "{{ messages | tojson }}{{ {'a': [1, true, none, 'q\"\\\\\u00e9<&>']} | tojson }}",
    "selectattr": "{% for m in messages %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }};{% endfor %}{{ m.content | rejectattr('type', 'eq', 'text') | list | length }}{{ m.content | selectattr('text', 'defined') | list | length }}{{ m.content | selectattr('text') | map(attribute='text') | join('+') }}{{ m.content | selectattr('type', 'in', ['image', 'video']) | list | length }}{% endfor %}",
    "generators are true and walk once": "{% set g = messages | selectattr('role', 'eq', 'nobody') %}{% if g %}true{% endif %}{% set h = messages | selectattr('role') %}{{ h | list | length }}{{ h | list | length }}",
    "tests": "{{ 'a' is string }}{{ 1 is string }}{{ missing is defined }}{{ missing is not defined }}{{ missing is undefined }}{{ none is none }}{{ {} is mapping }}{{ [] is iterable }}{{ [] is sequence }}{{ 'a' is iterable }}{{ 1 is number }}{{ true is number }}{{ true is boolean }}{{ true is integer }}{{ 2 is even }}{{ 3 is odd }}{{ 6 is divisibleby 3 }}{{ 6 is divisibleby(4) }}{{ 1 is equalto 1 }}{{ 1 is ne 2 }}{{ 'a' is in ['a'] }}{{ true is true }}{{ 1 is true }}{{ false is false }}",
    "test and operators": "{{ 'a' is string and 1 is number }}{{ 'a' is string == true }}{{ not 1 is string }}{{ 'yes' if 1 is not string else 'no' }}",
    "content is string": "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}{{ c['type'] }}{{ 'text' in c }}{% endfor %}{% endif %}{% endfor %}",
    "braces in print": "{{ {'a': {'b': 1}}['a']['b'] }}{{ '}}' }}{{ '%}' }}{% if '%}' %}x{% endif %}",
    "single braces": "{ a } {{'{'}} } % # {a: b}",
    "tools": "{% if tools %}tools{% endif %}{% if tools is none %}none{% endif %}{% if documents is defined %}d{% endif %}",
    "elif": "{% for i in range(4) %}{% if i == 0 %}a{% elif i == 1 %}b{% elif i == 2 %}c{% else %}d{% endif %}{% endfor %}",
    "raise": "{% if messages | length > 2 %}{{ raise_exception('too long: ' ~ messages | length) }}{% endif %}fine",
    "undefined attribute raises": "{{ missing.attribute }}",
    "undefined plus raises": "{{ 'a' + missing }}",
    "none plus raises": "{{ 'a' + none }}",
    "length of a generator raises": "{{ messages | selectattr('role') | length }}",
    "iterating a number raises": "{% for x in 3 %}{% endfor %}",
    "order of unlike things raises": "{{ 'a' < 1 }}",
    "unclosed tag raises": "{% if true %}",
    "stray end raises": "{% endfor %}",
    "unknown filter raises": "{{ 'a' | nosuchfilter }}",
    "bad expression raises": "{{ 1 + }}",
}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def begins(rendered, messages, header):
    """Byte offset of `header` in front of each user turn's first text, walking forward turn by turn."""
    out, at = [], 0
    for message in messages:
        words = [c["text"].strip() for c in message["content"] if c["type"] == "text"]
        if message["role"] == "user":
            at = rendered.index(header, at)
            out.append(len(rendered[:at].encode()))
            at += len(header)
        for w in words:
            at = rendered.index(w, at) + len(w)
    return out


def render(template, messages, add_generation_prompt):
    return _compile_jinja_template(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **TOKENS)


def case(name, template, chat, header=None):
    out = []
    for add_generation_prompt in (True, False):
        entry = {"name": name, "chat": chat, "add_generation_prompt": add_generation_prompt}
        try:
            entry["text"] = render(template, CHATS[chat], add_generation_prompt)
            if header and (name, chat) != ("llama 2 style", "system"):  # the system prompt stands inside of the user turn
                entry["begins"] = begins(entry["text"], CHATS[chat], header)
        except Exception as error:
            entry["rejects"] = str(error)
        out.append(entry)
    return out if header else out[:1]


def family(folder):
    file = folder / "chat_template.jinja"
    return file.read_text() if file.exists() else json.loads((folder / "chat_template.json").read_text())["chat_template"]


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make_chat_goldens.py CHECKPOINTS (the folder that make_tiny_checkpoints.py wrote)")
    checkpoints = Path(sys.argv[1])
    full = {name: (family(checkpoints / name), header) for name, header in
            [("llava15", "USER: "), ("llava_next_vicuna", "USER: "), ("llava_next_mistral", "[INST] "),
             ("qwen25vl", "<|im_start|>user\n"), ("qwen25vl_tied", "<|im_start|>user\n")]}
    full["published llava"] = (LLAVA_PUBLISHED, "USER: ")
    full["published mistral"] = (MISTRAL_PUBLISHED, "[INST] ")
    full["llama 2 style"] = (LLAMA2_STYLE, "[INST] ")
    full["first looks"] = (FIRST_LOOKS, "<|user|>\n")
    templates = {name: template for name, (template, _) in full.items()} | PIECES
    cases = []
    for name, (template, header) in full.items():
        for chat in CHATS:
            cases += case(name, template, chat, header)
    for name, template in PIECES.items():
        for chat in ("single", "system"):
            cases += case(name, template, chat)
    (HERE / "cases.json").write_text(
        json.dumps({"tokens": TOKENS, "chats": CHATS, "templates": templates, "cases": cases}, indent=1) + "\n")
    print(len(templates), "templates,", len(cases), "cases,", sum("rejects" in c for c in cases), "of them errors")


main()
