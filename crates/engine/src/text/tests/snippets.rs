//! Small templates, one feature or two each, and what transformers makes of them (as in `conversations`).

/// Template and text.
pub(super) const SNIPPETS: &[(&str, &str)] = &[
    (r"{{ [1, 2.5, 'a\'b', none, true, {'k': 'v'}] }}", r#"[1, 2.5, "a'b", None, True, {'k': 'v'}]"#),
    (r"{{ 'x' ~ [1, 'y'] ~ none ~ 1.0 ~ true ~ undefined_name }}", r"x[1, 'y']None1.0True"),
    (
        r"{{ 1e16 }} {{ 1e15 }} {{ 0.00001 }} {{ 123456789.125 }} {{ 1/3 }}",
        r"1e+16 1000000000000000.0 1e-05 123456789.125 0.3333333333333333",
    ),
    (
        r#"{{ {'a': [1, {'b': none}], 'c': 'é<>&\'\"\n\u0007'} | tojson }}"#,
        r#"{"a": [1, {"b": null}], "c": "é<>&'\"\n\u0007"}"#,
    ),
    (
        r"{{ {'b': 1, 'a': {}, 'c': []} | tojson(indent=2, sort_keys=true) }}",
        r#"{
  "a": {},
  "b": 1,
  "c": []
}"#,
    ),
    (
        r"{{ {'b': [1, 2], 'a': 'é'} | tojson(separators=(',', ':'), ensure_ascii=true) }}",
        r#"{"b":[1,2],"a":"\u00e9"}"#,
    ),
    (
        r"{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a.b.c'.split('.', 1) }} {{ 'a.b.c'.rsplit('.', 1) }} {{ ''.split(',') }}",
        r"['a', 'b', '', 'c'] ['a', 'b'] ['a', 'b.c'] ['a.b', 'c'] ['']",
    ),
    (
        r"{{ 'héllo'.find('l') }} {{ 'x'.find('y') }} {{ 'banana'.count('an') }} {{ 'ab'.count('') }} {{ 'banana'.rfind('a') }}",
        r"2 -1 2 3 5",
    ),
    (
        r"{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'a.txt'.removesuffix('.txt') }} {{ 'k=v=w'.partition('=')[2] }} {{ 'k=v=w'.rpartition('=')[0] }} {{ 'kv'.partition('=')|join('|') }} {{ 'kv'.rpartition('=')|join('|') }}",
        r"x a v=w k=v kv|| ||kv",
    ),
    (
        r"{{ 'one two'.title() }} {{ 'ABC'.lower() }} {{ 'abc'.capitalize() }} {{ 'xxaxx'.strip('x') }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }}",
        r"One Two abc Abc a True True",
    ),
    (
        r"{{ 'a-b-c'.replace('-', '+') }} {{ 'a-b-c'.replace('-', '+', 1) }} {{ 'aXbX' | replace('X', '_') }} {{ ', '.join(['a', 'b']) }}",
        r"a+b+c a+b-c a_b_ a, b",
    ),
    (
        r"{{ ['b', 'a', 'b'] | unique | list }} {{ ['b', 'a'] | sort }} {{ [3, 1] | max }} {{ [1, 2] | sum }} {{ [1, 2, 3] | batch(2) | list }}",
        r"['b', 'a'] ['a', 'b'] 3 3 [[1, 2], [3]]",
    ),
    (
        r"{{ 'abc'[::-1] }} {{ 'abc'[1:] }} {{ [1, 2, 3][:-1] }} {{ 'abc'[-1] }} {{ [1, 2, 3][::-1][0] }} {{ 'a b c'.split(' ')[1:][0].upper() }}",
        r"cba bc [1, 2] c 3 B",
    ),
    (
        r"{% for a, b in {'x': 1, 'y': 2}.items() %}{{ loop.index }}{{ a }}={{ b }}{{ ',' if not loop.last }}{% endfor %}",
        r"1x=1,2y=2",
    ),
    (
        r"{% for x in [1, 2, 3] if x != 2 %}{{ x }}{% else %}none{% endfor %} {% for x in [] %}{% else %}none{% endfor %}",
        r"13 none",
    ),
    (
        r"{{ 'abc' is string }} {{ 'abc' is sequence }} {{ {} is sequence }} {{ {} is mapping }} {{ none is none }} {{ true is number }} {{ true is integer }} {{ 1 is integer }} {{ 'a' is iterable }} {{ 3 is iterable }} {{ x is defined }} {{ 1.5 is float }}",
        r"True True True True True True False True True False False True",
    ),
    (
        r"{% if true %}
  a
  {% if true %}
  b
  {% endif %}
{% endif %}
  {# gone #}
c {# x #} d
",
        r"  a
  b
c  d",
    ),
    (
        r"{%- if true -%}  a  {%- endif -%}

 {{- 'b' -}} 
 c {%+ if true %}d{% endif +%}
 e

",
        r"abc d
 e
",
    ),
    (
        r"  {% raw %}{{ x }} {% if %}{% endraw %}
",
        r"{{ x }} {% if %}",
    ),
    (
        r"{% set x = [] %}{% for i in range(3) %}{% set x = x + [i] %}{% endfor %}{{ x }} {% set ns = namespace(a=1, b='t') %}{% for i in range(3) %}{% set ns.a = ns.a * 2 + 1 %}{% endfor %}{{ ns.a }}{{ ns.b }}",
        r"[] 15t",
    ),
    (
        r"{{ not true or false and true }} {{ 1 if false }}|{{ 'a' in 'cat' }} {{ 'k' in {'k': 1} }} {{ 2 not in [1] }} {{ 1 < 2 }} {{ '-' * 5 }} {{ 'ab' * 2 ~ 'c' }} {{ 2 ** 3 }} {{ 7 % 4 }} {{ 7 / 2 }} {{ (1 + 2) * 3 - -1 }}",
        r"False |True True True True ----- ababc 8 3 3.5 10",
    ),
    (
        r"{{ missing }}|{{ messages[0].nope }}|{{ messages[0]['role'] }}|{{ messages[0].get('role') }}|{{ messages[0].get('zz') }}|{{ messages[0].get('zz', 'dd') }}|{{ messages|length }}|{{ messages[-1].role|upper }}",
        r"||user|user|None|dd|3|USER",
    ),
    (
        r"{{ none | default('d') }} {{ nope | default('d') }} {{ '' | default('d', true) }} {{ messages | map(attribute='role') | join('-') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | list }}",
        r"None d d user-assistant-user 2 ['ho']",
    ),
    (
        r"{% macro m(a, b='z') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}c{% endcall %}",
        r"<1z><12>[c]",
    ),
    (
        r"{{ 'a\nb\n\nc' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(width=1, first=true, blank=true) }}|{{ 'a\nb' | indent('> ') }}",
        r"a
  b

  c|  a
  b| a
 
 b|a
> b",
    ),
    (
        r"{{ '%s is %d' | format('x', 3) }} {{ '{} {}'.format('a', 2) }} {{ '{0}-{name}'.format('a', name='n') }} {{ 'x' | safe }} {{ '<&>' }}",
        r"x is 3 a 2 a-n x <&>",
    ),
    (
        r"{{ 3.7 | int }} {{ '5' | int + 1 }} {{ 3.14159 | round(2) }} {{ -3 | abs }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ 'ab' | list }} {{ ['a', 'b'] | reverse | list }} {{ 'a b' | wordcount if false else 'n' }}",
        r"3 6 3.14 3 1 2 ['a', 'b'] ['b', 'a'] n",
    ),
    (
        r"{{ dict(a=1, b='x') }} {{ ({'a': 1} | items | list)[0][1] }} {{ ({'b': 1, 'a': 2} | dictsort)[0] | join('=') }} {{ {'a': 1}.keys() | list }} {{ {'a': 1}.values() | list }}",
        r"{'a': 1, 'b': 'x'} 1 a=2 ['a'] [1]",
    ),
    (
        r"{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j %y %p %-d') }}",
        r"2026-11-05 09:07:03 Thursday November 309 26 AM 5",
    ),
    (
        r"{% set a %}block {{ 1 + 1 }}{% endset %}{{ a }}{{ a | length }}{% filter upper %}shout{% endfilter %}{% with z = 3 %}{{ z }}{% endwith %}{{ z }}",
        r"block 27SHOUT3",
    ),
    (
        r"{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{{ loop.first }}{{ loop.revindex }}{% endfor %}",
        r"0True52False3",
    ),
    (
        r"{{ tools is none }} {{ documents is none }} {{ tools == none }} {% if tools %}y{% else %}n{% endif %} {{ add_generation_prompt }} {{ bos_token }}{{ eos_token }}{{ pad_token }}",
        r"True True True n True <s></s>",
    ),
    (r"{% generation %}  gen {% endgeneration %}", r"  gen "),
    (
        r"{{ 'ü' | length }} {{ 'A' < 'a' }} {{ [1, [2, 3]] == [1, [2, 3]] }} {{ {'a': 1} == {'a': 1} }} {{ none == false }} {{ 1 == 1.0 }} {{ 'a' == undefined_name }}",
        r"1 True True True False True False",
    ),
    (r"{{ 'a' 'b' }} {{ ('x') }} {{ (1, 2) | list }} {{ [1, 2,] }} {{ 'it''s' }}", r"ab x [1, 2] [1, 2] its"),
    (
        r"{{ messages[0] | tojson }} {{ messages | tojson }}",
        r#"{"role": "user", "content": "hi"} [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "é"}]"#,
    ),
    (
        r"{{ 'line1\nline2'.splitlines() }} {{ 'x' is eq 'x' }} {{ 4 is divisibleby 2 }} {{ 4 is even }} {{ 'a' is in ['a'] }} {{ 'é' | upper }} {{ ' x ' | trim }}{{ 'xax' | trim('x') }}",
        r"['line1', 'line2'] True True True True É xa",
    ),
    (
        r"{{ ['a', none] | upper }} {{ {'k': 'v'} | trim }} {{ none | lower }} {{ 1.5 | trim }}",
        r"['A', NONE] {'k': 'v'} none 1.5",
    ),
    (
        r"{{ ''[::-1] }}{{ [][::-1] }} {{ 'abcdef'[4:1:-1] }} {{ 'abcdef'[1:5:2] }} {{ 'abcdef'[-3:-1] }} {{ 'abc'[5:] }} {{ 'abc'[:9] }} {{ 'abc'[::-2] }} {{ 'abc'[1:2:-1] }} {{ [1, 2, 3][-9:2] }} {{ [1, 2, 3][1 if true else 0:][0] }} {{ [[1, 2], 3][0][1:][::-1] }} {{ range(5)[1:3] | list }}",
        r"[] edc bd de  abc ca  [1, 2] 2 [2] [1, 2]",
    ),
    (r"{{ [nope, none] }}{{ nope }}", r"[Undefined, None]"),
    (
        r"{{ 1000000 * 3 }} {{ 5000 * 2.5 }} {{ 100000 * 100000 }} {{ -2 * 3 }}",
        r"3000000 12500.0 10000000000 -6",
    ),
];
