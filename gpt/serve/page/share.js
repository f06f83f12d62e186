// A text as others make it again: curl, Python, sample.py; and as data to fine-tune on.

export function shared(how, branch) {
  return { curl, python, sample, export: exported }[how](branch);
}

// {path, body} of what is asked of OpenAI's endpoints. Tokens that were chosen by hand are forced.
function request(branch) {
  const { written, max_tokens: _, ...body } = branch.body;  // it may have been stopped
  const chat = branch.root.asked.messages !== undefined;
  return {
    path: chat ? "chat/completions" : "completions",
    body: { ...body, ...branch.root.asked, max_tokens: branch.path.length,
      ...(written.length ? { forced_tokens: written } : {}) },
  };
}

const address = () => new URL("v1", document.baseURI).href;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(branch) {
  const { path, body } = request(branch);
  return `curl ${address()}/${path} -H 'Content-Type: application/json' \\
  -H "Authorization: Bearer \${KEY:-none}" \\
  -d ${quoted(JSON.stringify(body))}\n`;
}

function python(branch) {
  const { path, body } = request(branch);
  const known = ["model", "prompt", "messages", "max_tokens", "seed", "temperature", "top_p",
    "presence_penalty", "frequency_penalty"];
  const given = known.filter((name) => name in body)
    .map((name) => `${name}=${JSON.stringify(body[name])}`);
  const more = Object.fromEntries(Object.entries(body).filter(([name]) => !known.includes(name)));
  if (Object.keys(more).length) given.push(`extra_body=${JSON.stringify(more)}`);
  const chat = path.startsWith("chat");
  return `import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address())}, api_key=os.environ.get("KEY", "none"))
answer = client.${path.replace("/", ".")}.create(
    ${given.join(",\n    ")})
print(answer.choices[0].${chat ? "message.content" : "text"})
`;
}

function sample(branch) {
  const { body } = request(branch);
  const { root, checkpoint, watched } = branch.model;
  const { model: _, prompt, messages, max_tokens, forced_tokens, ...settings } = body;
  const options = Object.entries({ max_new_tokens: max_tokens, ...settings })
    .map(([name, value]) => ` --${name.replaceAll("_", "-")}=${value}`).join("");
  const forced = forced_tokens ? ` --forced-tokens ${forced_tokens.join(" ")}` : "";
  const command = `python sample.py ${quoted(watched ? `${root}@${checkpoint}` : root)}`;
  if (messages === undefined) return `${command} --prompt=${quoted(prompt)}${options}${forced}\n`;
  const system = messages[0].role === "system" ? ` --system=${quoted(messages[0].content)}` : "";
  const said = messages.filter(({ role }) => role === "user").map(({ content }) => content);
  if (said.length > 1 || !/^[^\s/](.*\S)?$/.test(said[0])) {
    throw new Error("sample.py --chat repeats first messages of one line; copy curl or Python");
  }
  return `printf '%s\\n' ${quoted(said[0])} | ${command} --chat${system}${options}${forced}\n`;
}

// One record, as finetune.py reads it.
function exported({ root, text }) {
  const { prompt, messages } = root.asked;
  const record = messages === undefined ? { prompt, completion: text }
    : { messages: [...messages, { role: "assistant", content: text }] };
  return `${JSON.stringify(record)}\n`;
}
