use omex_runtime::tokenizer::TokenKind;

use super::*;
use crate::tokenizer::{self, Model};

/// A scored vocabulary of ASCII, byte tokens and some control tokens.
fn vocabulary(control: &[&str]) -> Vocabulary {
    let mut tokens = vec!["<unk>".to_owned()];
    let mut kinds = vec![TokenKind::Unknown];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(TokenKind::Byte);
    }
    for text in control {
        tokens.push((*text).to_owned());
        kinds.push(TokenKind::Control);
    }
    for byte in 0x21..0x7f {
        tokens.push(char::from(byte).to_string());
        kinds.push(TokenKind::Normal);
    }
    for text in ["\u{2581}", "\n\n", "\n\u{2581}", "user\n"] {
        tokens.push(text.to_owned());
        kinds.push(TokenKind::Normal);
    }
    let id = |text: &str| tokens.iter().position(|t| t == text).map(|id| id as u32);
    Vocabulary {
        model: Model::Scores((0..tokens.len()).map(|id| -(id as f32)).collect()),
        bos: id("<s>"),
        eos: id("</s>"),
        eot: None,
        eom: None,
        unknown: Some(0),
        padding: None,
        add_bos: false,
        add_eos: false,
        add_space_prefix: false,
        strip_right: false,
        strip_left: None,
        chat_template: None,
        tokens,
        kinds,
    }
}

const CONTROL: [&str; 4] = ["<s>", "</s>", "<|user|>", "<|end|>"];

fn build(source: &str, message: &str) -> Result<PromptTemplate, ImportError> {
    let vocabulary = vocabulary(&CONTROL);
    let table = tokenizer::compile(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let request = Request {
        chat_template: Some(source),
        system: None,
        message,
        date: None,
    };
    compile(&vocabulary, &tokenizer, &request)
}

fn evaluate(source: &str, date: Option<Date>) -> Result<String, ImportError> {
    let source = Source::new(source)?;
    let template = ChatTemplate::new(&source, &vocabulary(&CONTROL), date)?;
    Ok(template.render(Some(" Sys "), "User")?)
}

#[test]
fn a_prompt_is_cut_at_the_special_tokens_around_the_input() {
    let id = |text: &str| {
        vocabulary(&CONTROL)
            .tokens
            .iter()
            .position(|t| t == text)
            .unwrap() as u32
    };
    let template = build(
        "{{ bos_token }}<|user|>user\n{{ messages[0].content | trim }} ok<|end|>x",
        "{{input}}",
    )
    .unwrap();
    assert_eq!(
        template,
        PromptTemplate {
            prefix_tokens: vec![id("<s>"), id("<|user|>")],
            prefix_text: "user\n".to_owned(),
            trim: Trim::Both,
            suffix_text: " ok".to_owned(),
            suffix_tokens: vec![id("<|end|>"), id("x")],
            empty_tokens: None,
        }
    );
}

#[test]
fn trimming_is_recognised() {
    let trim = |expression: &str, message: &str| {
        build(&format!("<s>{{{{ {expression} }}}}</s>"), message)
            .unwrap()
            .trim
    };
    for (expression, expected) in [
        ("messages[0].content", Trim::None),
        ("messages[-1]['content'] | trim", Trim::Both),
        ("messages[0].content.strip()", Trim::Both),
        ("messages[0].content.lstrip()", Trim::Left),
        ("messages[0].content.rstrip()", Trim::Right),
    ] {
        assert_eq!(trim(expression, "{{input}}"), expected, "{expression}");
    }
    // The text beside the input is trimmed in its stead.
    assert_eq!(
        trim("messages[0].content | trim", "\n Q: {{ input }}"),
        Trim::Right
    );
    assert_eq!(
        trim("messages[0].content | trim", "{{input}} ?"),
        Trim::Left
    );
    assert_eq!(
        trim("messages[0].content | trim", "a{{input}}b"),
        Trim::None
    );
    assert_eq!(
        trim("messages[0].content | trim", " {{input}}\n"),
        Trim::Both
    );
}

#[test]
fn an_empty_input_may_be_special() {
    let template = build(
        "<s>Q: {{ messages[0].content | trim }}</s>",
        "Sum:\n{{input}}",
    )
    .unwrap();
    assert_eq!(template.trim, Trim::Right);
    assert!(
        template.empty_tokens.is_some(),
        "the newline goes when nothing follows it"
    );
    let template = build(
        "<s>{% if messages[0].content %}{{ messages[0].content }}{% else %}none{% endif %}</s>",
        "{{input}}",
    )
    .unwrap();
    assert!(template.empty_tokens.is_some());
}

#[test]
fn other_treatment_of_the_input_is_refused() {
    for (body, why) in [
        ("{{ c | upper }}", "changes or leaves out"),
        ("{{ c | length }}", "changes or leaves out"),
        ("fixed", "changes or leaves out"),
        ("{{ c[::-1] }}", "changes or leaves out"),
        ("{{ c.split() | join(' ') }}", "changes or leaves out"),
        ("{{ c | replace('\\n', ' ') }}", "changes or leaves out"),
        ("{{ c | tojson }}", "changes or leaves out"),
        ("{{ c | e }}", "changes or leaves out"),
        ("{{ c | title }}", "changes or leaves out"),
        ("{{ c[:200] }}", "in a way of its own"),
        ("{{ c }} {{ c }}", "repeats the input 2 times"),
        ("{{ c.strip('\\n') }}", "in a way of its own"),
        ("{{ c.strip('ab') }}", "in a way of its own"),
        ("{{ c | replace('<br>', 'x') }}", "in a way of its own"),
        (
            "{% if '/think' in c %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c.startswith(\"Q:\") %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c.endswith('?') %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c == 'stop' %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c | length > 1000 %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        ("{{ c[:20000] }}", "in a way of its own"),
        (
            "{% if c | length > 20000 %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c.split() | length == 7000 %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c.count('\\n') > 200 %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if c | int == 4711 %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if 'foo' ~ 'bar' in c %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        (
            "{% if '\\u003cthink\\u003e' in c %}T{% endif %}{{ c }}",
            "in a way of its own",
        ),
        ("{{ c.split('</think>')[-1] }}", "in a way of its own"),
        (
            "{{ c.split('</think>')[-1] | trim }}",
            "in a way of its own",
        ),
        ("{% if c | trim %}{{ c }}{% endif %}", "in a way of its own"),
    ] {
        let source = format!("<s>{{% set c = messages[0]['content'] %}}{body}</s>");
        let error = build(&source, "{{input}}").expect_err(body);
        assert_eq!(error.code, Code::ChatTemplateUnsupported, "{body}: {error}");
        assert!(error.message.contains(why), "{body}: {error}");
    }
}

#[test]
fn runaway_templates_end_with_an_error() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{{ range(10000000000) | list }}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(90) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(90) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{{ 'x'.join(range(99999999)) }}",
        "{{ ('x' * 100000).join('y' * 100000) }}",
        "{{ 'x' | center(1000000000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ [[[1]]] | tojson(indent=100000000000) * 1000000 }}",
        "{% if",
        "{{ nothing.at.all }}",
        "{% include 'other' %}",
        "{{ raise_exception('No \u{1b}[31m system') }}",
        "{{ strftime_now('%Y') }}",
        "{{ 'x'.format_map() }}",
        // Trees that share their branches are small to hold and endless to walk.
        "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(100000) %}{% set ns.s = [ns.s] %}{% endfor %}",
        "{{ ([('x' * 1000000)] * 1000000) | join }}",
        "{{ range(2000000) | sum }}",
        "{{ 'a' | map(*(['map'] * 1900)) | list }}",
        "{% for i in range(1000) %}{% for m in range(1000) | sort(reverse=true) %}{% endfor %}{% endfor %}",
    ] {
        let error = evaluate(source, None).expect_err(source);
        assert_eq!(error.code, Code::ChatTemplateInvalid, "{source}");
        assert!(!error.to_string().contains('\u{1b}'), "{source}");
    }
    // Columns beyond those that the parser counts.
    for end in [
        "{{ '",
        "{{ $ }}",
        "{# a",
        "{{ 1e }}",
        "{% raw %}",
        "{{ 'x' }}",
    ] {
        let long = format!("{}{end}", "x".repeat(65_536));
        assert!(evaluate(&long, None).is_err(), "{end}");
    }
    let deep = "{% if true %}".repeat(10_000);
    assert!(evaluate(&deep, None).is_err());
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(60_000), ")".repeat(60_000));
    assert!(evaluate(&nested, None).is_err());
    for link in ["1+", "not ", "-", "a~", "1 if 0 else "] {
        let chain = format!("{{{{ {}1 }}}}", link.repeat(80_000));
        assert!(evaluate(&chain, None).is_err(), "{link}");
    }
    for link in [".a", "|trim", "[0]", "()"] {
        let chain = format!("{{{{ a{} }}}}", link.repeat(80_000));
        assert!(evaluate(&chain, None).is_err(), "{link}");
    }
    let branches = format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(40_000));
    assert!(evaluate(&branches, None).is_err());
    let wide = "{{ range(-9000000000000000000, 9000000000000000000, 5000000000000000000) | last }}";
    assert_eq!(evaluate(wide, None).as_deref(), Ok("6000000000000000000"));
    // Chains as long as people write them are fine.
    let chain = format!("{{{{ {}1 }}}}", "1+".repeat(300));
    assert_eq!(evaluate(&chain, None).as_deref(), Ok("301"));
}

/// Expectations are what Jinja2 3.1 with transformers' settings prints.
#[test]
fn python_is_reproduced() {
    for (expression, expected) in [
        ("'  a b '.strip()", "a b"),
        ("'xxaxx'.strip('x')", "a"),
        ("'xxaxx'.lstrip('x')", "axx"),
        ("'\u{1c}a\u{85}' | trim", "a"),
        ("'a,b,c'.split(',')", "['a', 'b', 'c']"),
        ("'a,b,c'.split(',', 1)", "['a', 'b,c']"),
        ("'a,b,c'.rsplit(',', 1)", "['a,b', 'c']"),
        ("' a  b c '.split()", "['a', 'b', 'c']"),
        ("' a  b c '.split(none, 1)", "['a', 'b c ']"),
        ("' a  b c '.rsplit(none, 1)", "[' a  b', 'c']"),
        ("''.split()", "[]"),
        ("''.split(',')", "['']"),
        ("'a\\nb\\r\\nc\\n'.splitlines()", "['a', 'b', 'c']"),
        ("'a\\nb'.splitlines(true)", "['a\\n', 'b']"),
        ("'a-b-c'.partition('-')[2]", "b-c"),
        ("'they\\'re BIG'.title()", "They'Re Big"),
        ("'hELLO wORLD'.capitalize()", "Hello world"),
        ("'abc'.startswith(('x', 'a'))", "True"),
        ("'abc'.endswith('bc')", "True"),
        ("'aXbX'.replace('X', '-', 1)", "a-bX"),
        ("'ab'.replace('', '.')", ".a.b."),
        ("'abcabc'.find('c')", "2"),
        ("'éb'.find('b')", "1"),
        ("'abc'.rfind('x')", "-1"),
        ("'aaa'.count('a')", "3"),
        ("', '.join(['a', 'b'])", "a, b"),
        ("'prefix-x'.removeprefix('prefix-')", "x"),
        ("{'a': 1}.get('b')", "None"),
        ("{'a': 1}.get('b', 2)", "2"),
        ("{'a': 1}.items() | list", "[('a', 1)]"),
        ("{'a': 1}.keys() | list", "['a']"),
        ("messages[0].get('content').strip()", "Sys"),
        ("messages | length", "2"),
        ("messages[1:][0]['role']", "user"),
        ("messages[::-1][0].role", "user"),
        ("tools is none", "True"),
        ("missing is defined", "False"),
        ("missing", ""),
        ("none", "None"),
        ("true", "True"),
        ("1.0", "1.0"),
        ("7 // 2", "3"),
        ("-7 % 3", "2"),
        ("'a' ~ 1 ~ none", "a1None"),
        ("['a', none, true, 1.5]", "['a', None, True, 1.5]"),
        (
            "{'é': [1, 'x\"', none]} | tojson",
            "{\"é\": [1, \"x\\\"\", null]}",
        ),
        (
            "[1, {'b': 1, 'a': 2}] | tojson(indent=2)",
            "[\n  1,\n  {\n    \"b\": 1,\n    \"a\": 2\n  }\n]",
        ),
        ("[] | tojson(indent=2)", "[]"),
        ("'é\\n' | tojson(ensure_ascii=true)", "\"\\u00e9\\n\""),
        ("'<&>' | tojson", "\"<&>\""),
        (
            "messages | map(attribute='role') | join(',')",
            "system,user",
        ),
        (
            "(messages | selectattr('role', 'equalto', 'user') | list)[0].content",
            "User",
        ),
        (
            "messages | rejectattr('role', 'equalto', 'user') | list | length",
            "1",
        ),
        ("bos_token + eos_token", "<s></s>"),
        ("'x' if add_generation_prompt else 'y'", "x"),
        ("namespace(a=1).a", "1"),
        ("'%s is %d' | format('a', 3)", "a is 3"),
        ("'user' in ['user']", "True"),
        ("messages[0].role | capitalize", "System"),
        ("range(3) | list", "[0, 1, 2]"),
        ("'a\\tb'", "a\tb"),
        ("'abc'[-1]", "c"),
        ("'abc'[1:]", "bc"),
        ("cycler is defined", "True"),
        ("\"it's a (big) 3rd-day\" | title", "It's A (Big) 3rd-Day"),
        ("['a', 'A', 'b'] | unique | list", "['a', 'b']"),
        ("'abc' | center(8)", "  abc   "),
        ("'ab' | center(7)", "   ab  "),
        ("{'b': 1, 'a': 2} | dictsort", "[('a', 2), ('b', 1)]"),
        (
            "1e16 ~ ' ' ~ 1.5e-7 ~ ' ' ~ (0.1 + 0.2)",
            "1e+16 1.5e-07 0.30000000000000004",
        ),
        ("'abcdef'[4:1:-1]", "edc"),
        (
            "'%05d|%-5s|%+d|%x|%.2f' % (42, 'ab', 3, 255, 3.14159)",
            "00042|ab   |+3|ff|3.14",
        ),
        ("[\"a'b\", 'a\\nb']", "[\"a'b\", 'a\\nb']"),
        ("[{'a': {'b': 1}}] | map(attribute='a.b') | list", "[1]"),
        ("1 < 2 < 3", "True"),
        ("'{} and {}'.format('a', 1)", "a and 1"),
        ("'{1}{0}{x!r}'.format('a', 'b', x='c')", "ba'c'"),
        (
            "'{{{:>5}|{:<5}|{:^5}}}'.format('ab', 'cd', 'ef')",
            "{   ab|cd   | ef  }",
        ),
        (
            "'{:05d}|{:+d}|{:,}|{:x}|{:08.3f}|{:.0%}'.format(42, 3, 1234567, 255, -3.14159, 0.25)",
            "00042|+3|1,234,567|ff|-003.142|25%",
        ),
        (
            "'{:*^9}|{:.2}|{:>6}|{}'.format('mid', 'cut', true, none)",
            "***mid***|cu|     1|None",
        ),
        (
            "'{:_}|{:=+7}|{:<7}|'.format(1000, 5, -5)",
            "1_000|+     5|-5     |",
        ),
        (
            "'{:10.2f}|{}|{:,.1f}'.format(2.5, 1.0, 12345.678)",
            "      2.50|1.0|12,345.7",
        ),
        (
            "'{:05}|{:_x}|{:_b}'.format('ab', 1234567, 255)",
            "ab000|12_d687|1111_1111",
        ),
        (
            "'{:.1f}|{:,}|{!r}'.format(-0.0, 1e16, missing)",
            "-0.0|1e+16|Undefined",
        ),
        (r"'\é\漢'", r"\xe9\u6f22"),
        (
            r"'\U0001F600 \x41\u00e9 \101 \d \/ \' \a'",
            "😀 Aé A \\d \\/ ' \u{7}",
        ),
    ] {
        let got = evaluate(&format!("{{{{ {expression} }}}}"), None);
        assert_eq!(got.as_deref(), Ok(expected), "{expression}");
    }
    // Block tags take the space before them and the newline after them.
    let source =
        "a\n  {% if true %}\n  b\n  {%- endif %}\n{% generation %}\nc\n{%- endgeneration -%}\n d\n";
    assert_eq!(evaluate(source, None).as_deref(), Ok("a\n  bcd"));
}

/// As above.
#[test]
fn loops_and_macros_call_what_is_around_them() {
    for (source, expected) in [
        (
            "{% for a in [{'n': 1, 'c': [{'n': 2, 'c': [{'n': 3}]}, {'n': 4}]}] recursive %}\
             [{{ loop.depth }}.{{ loop.index }}:{{ a.n }}{{ loop(a.c) if a.c }}]{% endfor %}",
            "[1.1:1[2.1:2[3.1:3]][2.2:4]]",
        ),
        (
            "{% set x = 'o' %}{% for a in [[1, [2]], 3] recursive %}{% if a is iterable %}\
             {% set x = 'i' %}({{ loop(a) }}){% else %}{{ x }}{{ a }}{% endif %}\
             {% else %}-{% endfor %}",
            "(o1(o2))o3",
        ),
        (
            "{% for a in [[], 1] recursive %}{% if a is iterable %}{{ loop(a) }}\
             {% else %}{{ a }}{% endif %}{% else %}none {% endfor %}",
            "none 1",
        ),
        (
            "{% for a in [[1], [2, [3]]] recursive %}{% for b in [9] %}\
             {% if a is iterable %}x{% endif %}{% endfor %}{% if a is iterable %}{{ loop(a) }}\
             {% else %}{{ loop.previtem }}{{ loop.revindex }}{% endif %}{% endfor %}",
            "x1x2x1",
        ),
        (
            "{% for a in [1] %}{{ loop.depth }}{{ loop.depth0 }}{% for b in [1] %}\
             {{ loop.depth }}{% endfor %}{% endfor %}",
            "101",
        ),
        (
            "{% macro tag(name) %}<{{ name }}>{{ caller() }}</{{ name }}>{% endmacro %}\
             {% call tag('b') %}in {{ messages[0].role }}{% endcall %}",
            "<b>in system</b>",
        ),
        (
            "{% macro each(l) %}{% for i in l %}{{ caller(i, loop.index0) }}{% endfor %}\
             {% endmacro %}{% call(v, n=7) each([5, 6]) %}{{ n }}={{ v }};{% endcall %}",
            "0=5;1=6;",
        ),
        (
            "{% macro m() %}{{ caller is defined }}{{ 'c' if caller }}{% endmacro %}{{ m() }}\
             {% call m() %}{% endcall %}",
            "FalseTruec",
        ),
        (
            "{% macro m(l, z) %}{{ l(z) }}{% endmacro %}{% for o in ['O'] %}\
             {% for p in ['P'] %}{% for a in [[1]] recursive %}{{ z }}{{ o }}{{ p }}\
             {{ m(loop, a) if a is iterable else a }}{% endfor %}{% endfor %}{% endfor %}",
            "OPOP1",
        ),
        (
            "{% macro m() %}{{ caller() }}{% endmacro %}{% for o in [1, 2] %}\
             {% for a in [[]] recursive %}{% call m() %}{{ loop(a) }}{% endcall %}\
             {% else %}{{ loop.index }}{{ a is defined }}{% endfor %}{% endfor %}",
            "1False2False",
        ),
        (
            "{% macro m(a, caller=none) %}{{ a }}{{ caller() if caller else 'no' }}{% endmacro %}\
             {{ m(1) }}{% call m(2) %}y{% endcall %}",
            "1no2y",
        ),
        (
            "{% macro b() %}[{{ caller() }}]{% endmacro %}{% macro m(y) %}{% call b() %}\
             -{{ (caller(1) if caller) }}{% endcall %}{% endmacro %}{% call m() %}{% endcall %}",
            "[-]",
        ),
        (
            "{% macro a() %}<{{ caller() }}>{% endmacro %}{% macro b() %}{{ a(caller=caller) }}\
             {% endmacro %}{% call b() %}z{% endcall %}{{ a.name }}",
            "<z>a",
        ),
        (
            "{% for a in [1, 2] %}{% continue %}{% else %}E{% endfor %}",
            "E",
        ),
        (
            "{% for a in [1, 2] %}{% break %}{% else %}E{% endfor %}",
            "E",
        ),
        (
            "{% for a in [1, 2] %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% else %}E{% endfor %}",
            "1",
        ),
        (
            "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
            "1",
        ),
    ] {
        assert_eq!(evaluate(source, None).as_deref(), Ok(expected), "{source}");
    }
    for wrong in [
        "{% for a in [1] %}{{ loop([2]) }}{% endfor %}",
        "{% for a in [1] recursive %}{{ loop([2]) }}{% endfor %}",
        "{% call messages[0].role.strip() %}{% endcall %}",
        "{% call range(3) %}{% endcall %}",
        "{{ '{}'.format() }}",
        "{{ '{'.format(1) }}",
        "{{ '}'.format(1) }}",
        "{{ '{:d}'.format('a') }}",
        "{{ '{:5}'.format([1]) }}",
        "{{ '{:>99999999}'.format(1) }}",
        r"{{ '\N{BULLET}' }}",
        "{% macro a() %}{% endmacro %}{{ a.catch_varargs }}",
        "{{ '{}{0}'.format(1, 2) }}",
        "{{ '{:+}'.format('a') }}",
        "{{ '{:=5}'.format('a') }}",
        "{{ '{:,x}'.format(255) }}",
        "{{ '{:012,}'.format(1234567) }}",
        "{{ '{:.f}'.format(1.5) }}",
        "{{ '{!}'.format(1) }}",
        "{{ '{+1}'.format(1, 2) }}",
    ] {
        let error = evaluate(wrong, None).expect_err(wrong);
        assert_eq!(error.code, Code::ChatTemplateInvalid, "{wrong}");
    }
}

#[test]
fn dates_are_those_of_c() {
    let date = |text: &str| Date::parse(text);
    assert_eq!(
        date("2024-02-29"),
        Some(Date {
            year: 2024,
            month: 2,
            day: 29
        })
    );
    for wrong in [
        "",
        "2023-02-29",
        "1900-02-29",
        "2024-00-10",
        "2024-13-01",
        "2024-04-31",
        "2024-4-1",
        "2024-04-0é",
        "2024/04/01",
        "2024-04-011",
    ] {
        assert_eq!(date(wrong), None, "{wrong}");
    }
    for (day, format, expected) in [
        ("2024-02-29", "%d %b %Y", "29 Feb 2024"),
        (
            "2024-02-29",
            "%A, %B %-d, %Y (%j)",
            "Thursday, February 29, 2024 (060)",
        ),
        (
            "2026-11-23",
            "%a %F %y %m/%d %H:%M:%S %%",
            "Mon 2026-11-23 26 11/23 00:00:00 %",
        ),
        ("2000-01-01", "%A %e", "Saturday  1"),
        ("1999-12-31", "%a %j %w", "Fri 365 5"),
    ] {
        let source = format!("{{{{ strftime_now('{format}') }}}}");
        assert_eq!(evaluate(&source, date(day)).as_deref(), Ok(expected));
    }
    let error = evaluate("{{ strftime_now('%Q') }}", date("2024-01-01")).unwrap_err();
    assert!(error.message.contains("%Q"), "{error}");
}

#[test]
fn the_input_stands_once_in_the_message() {
    for (message, count) in [
        ("no place", 0),
        ("{{input}}{{ input }}", 2),
        ("{input}", 0),
        ("{{inputs}}", 0),
        ("{{", 0),
    ] {
        let error = build("<s>{{ messages[0].content }}", message).unwrap_err();
        assert_eq!(error.code, Code::PromptTemplate);
        assert!(error.message.contains(&format!("{count} times")), "{error}");
    }
}

#[test]
fn bos_is_never_doubled() {
    let mut vocabulary = vocabulary(&CONTROL);
    vocabulary.add_bos = true;
    let bos = vocabulary.bos.unwrap();
    let table = tokenizer::compile(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    for (chat_template, message, expected) in [
        (None, "{{input}}", 1),
        (None, "<s>{{input}}", 1),
        (
            Some("{{ bos_token }}{{ messages[0].content }}"),
            "{{input}}",
            1,
        ),
        // The template alone decides, as in transformers.
        (Some("{{ messages[0].content }}"), "{{input}}", 0),
    ] {
        let request = Request {
            chat_template,
            system: None,
            message,
            date: None,
        };
        let template = compile(&vocabulary, &tokenizer, &request).unwrap();
        for input in ["", "x"] {
            let mut ids = Vec::new();
            tokenizer.encode_prompt(&template, input.as_bytes(), &mut Scratch::new(), &mut ids);
            let count = ids.iter().filter(|&&id| id == bos).count();
            assert_eq!(count, expected, "{chat_template:?} {message:?} {input:?}");
        }
    }
}

#[test]
fn control_tokens_may_take_the_space_after_them() {
    let mut vocabulary = vocabulary(&CONTROL);
    vocabulary.strip_right = true;
    let table = tokenizer::compile(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let source = "{% for m in messages %}<|user|>\n{{ m.content }}<|end|>\n{% endfor %}\n";
    let request = Request {
        chat_template: Some(source),
        system: None,
        message: "{{input}}",
        date: None,
    };
    let template = compile(&vocabulary, &tokenizer, &request).unwrap();
    assert_eq!(
        (template.trim, template.prefix_text.as_str()),
        (Trim::Left, "")
    );
    for input in ["", " ", "\n a\n", "a b"] {
        let (mut filled, mut whole) = (Vec::new(), Vec::new());
        tokenizer.encode_prompt(
            &template,
            input.as_bytes(),
            &mut Scratch::new(),
            &mut filled,
        );
        let text = format!("<|user|>\n{input}<|end|>\n");
        tokenizer.encode(
            text.as_bytes(),
            SpecialText::Parse,
            &mut Scratch::new(),
            &mut whole,
        );
        assert_eq!(filled, whole, "{input:?}");
    }
}

#[test]
fn a_system_message_without_a_place_goes_in_front_of_the_users() {
    let vocabulary = vocabulary(&CONTROL);
    let table = tokenizer::compile(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let prefix = |source: &str| {
        let request = Request {
            chat_template: Some(source),
            system: Some("Be brief."),
            message: "Say {{input}}",
            date: None,
        };
        compile(&vocabulary, &tokenizer, &request).map(|template| template.prefix_text)
    };
    let turn = "<|user|>{{ messages[-1].content }}<|end|>";
    let taken = "{% if messages[0].role == 'system' %}[{{ messages[0].content }}]{% endif %}";
    let refused = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}";
    // Where the last special token is the user's, the system's text is in tokens.
    assert_eq!(prefix(&format!("{taken}{turn}")).as_deref(), Ok("Say "));
    let changed = taken.replace("content }}", "content | upper }}");
    assert_eq!(prefix(&format!("{changed}{turn}")).as_deref(), Ok("Say "));
    for without in [format!("{refused}{turn}"), turn.to_owned()] {
        assert_eq!(
            prefix(&without).as_deref(),
            Ok("Be brief.\n\nSay "),
            "{without}"
        );
    }
    let broken = prefix("{{ raise_exception('always') }}").unwrap_err();
    assert!(broken.message.contains("always"), "{broken}");
    // One that fails with some inputs alone has a place.
    let some = "{% if messages[-1].content == 'Say A' %}{{ 1 // 0 }}{% endif %}";
    let broken = prefix(&format!("{taken}{some}{turn}")).unwrap_err();
    assert!(broken.help.unwrap().contains("the input `A`"));
    // What it refuses by itself is put in as any other.
    let some = some.replace("1 // 0", "raise_exception('sometimes')");
    let some = prefix(&format!("{taken}{some}{turn}"));
    assert_eq!(some.as_deref(), Ok("Say "));
}

#[test]
fn sources_are_read_as_jinja_reads_them() {
    for (source, expected) in [
        ("a\r\nb\rc", "a\nb\nc"),
        ("{{ '{%}' }}", "{%}"),
        ("{%", ""),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{%- generation -%} a {%- endgeneration %}", "a"),
        ("{% raw %}{% generation %}{% endraw %}", "{% generation %}"),
        ("{{ '{% generation %}' }}", "{% generation %}"),
        ("{{ {'b': 1} | tojson(4) }}", "{\"b\": 1}"),
        ("{{ {'b': 1} | tojson(true, 1) }}", "{\n \"b\": 1\n}"),
        ("{{ none | selectattr('a') | list }}", "[]"),
        ("{{ none | map('upper') | list }}", "[]"),
    ] {
        let got = evaluate(source, None);
        match expected {
            "" => assert!(got.is_err(), "{source}"),
            expected => assert_eq!(got.as_deref(), Ok(expected), "{source}"),
        }
    }
}
