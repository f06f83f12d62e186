// Texts that begin alike: what was asked, and the branches of what was written to it.

// What is asked: {prompt} or {messages}, as the server takes them.
export class Root {
  constructor(asked) {
    this.asked = asked;
    this.branches = [];
  }

  get title() {
    return this.asked.prompt ?? this.asked.messages.at(-1).content;
  }
}

// Tokens behind the first `at` tokens of a parent; of none, behind what is asked. body: what was
// sent to have them written, but for what is asked. model: what wrote them.
export class Branch {
  constructor(root, parent, at, tokens) {
    Object.assign(this, { root, parent, at, tokens, children: [], body: null, model: null });
    (parent?.children ?? root.branches).push(this);
  }

  get path() {
    return [...(this.parent?.path.slice(0, this.at) ?? []), ...this.tokens];
  }

  get text() {
    return this.path.map((token) => (token.end === "stop" ? "" : token.text)).join("");
  }

  get end() {
    return this.path.at(-1)?.end;
  }

  // Another text that is the same up to the token at `place`, and there has the one that is given.
  fork(place, token) {
    const owner = this.ownerOf(place);
    return new Branch(this.root, owner, place, [token]);
  }

  ownerOf(place) {
    return this.parent && place <= this.at ? this.parent.ownerOf(place) : this;
  }
}

// Which tokens of `a` and of `b` are not in their longest common subsequence: two sets of places.
export function differing(a, b) {
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      rows[i][j] = a[i].text === b[j].text ? rows[i + 1][j + 1] + 1
        : Math.max(rows[i + 1][j], rows[i][j + 1]);
    }
  }
  const found = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && a[i].text === b[j].text) i++, j++;
    else if (i < a.length && (j === b.length || rows[i + 1][j] >= rows[i][j + 1])) found[0].add(i++);
    else found[1].add(j++);
  }
  return found;
}
