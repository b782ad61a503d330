"use strict";
// Shows what stands in the page as data. Words of the data become text, never markup or code.
(() => {
  const meta = JSON.parse(document.getElementById("meta").textContent);
  const $ = (id) => document.getElementById(id);
  const PAGE = 48, MOST_CLASSES = 30, PAIRS = 60, BARS = 10, KEPT = 64, SNIPPET = 16;
  const now = { page: 0, example: -1, view: 0, place: [0, 0], chosen: [] };

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const options = (select, pairs) =>
    select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const number = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : "not finite");
  const className = (index) => meta.classes[index] ?? String(index);

  function failed(error) {
    $("failure").textContent = `This page cannot show its data: ${error.message}`;
    $("failure").hidden = false;
  }
  // What a user starts may be overtaken by what the same user starts next: only the last one draws.
  const turns = {};
  async function latest(what, work) {
    const turn = (turns[what] = (turns[what] ?? 0) + 1);
    try {
      await work(() => turns[what] === turn);
    } catch (error) {
      failed(error);
    }
  }

  // ---- arrays: blocks of rows, in the page or in files beside it

  const KINDS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
  const asked = new Map(), decoded = new Map();

  globalThis.jaxvizBlock = (name, text) => asked.get(name)?.(text);

  function textOf(name) {
    const here = $(`block-${name}`);
    if (here) return Promise.resolve(here.textContent);
    return new Promise((found, lost) => {
      const script = make("script", { src: `${meta.folder}/${name}.js` });
      asked.set(name, (text) => { asked.delete(name); script.remove(); found(text); });
      script.onerror = () => lost(new Error(`${meta.folder}/${name}.js is not beside it.`));
      document.head.append(script);
    });
  }

  async function decode(array, index) {
    const text = await textOf(array.blocks[index]);
    const raw = atob(text), packed = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) packed[i] = raw.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new KINDS[array.dtype](await new Response(stream).arrayBuffer());
  }

  // Rows of a block, decoded once as long as it is in use.
  function block(array, index) {
    const name = array.blocks[index];
    const found = decoded.get(name) ?? decode(array, index);
    decoded.delete(name); // the one used last stands last
    decoded.set(name, found);
    if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
    return found;
  }

  async function row(array, n) {
    const index = Math.floor(n / array.rows), length = array.shape.slice(1).reduce((a, b) => a * b, 1);
    const start = (n - index * array.rows) * length;
    return (await block(array, index)).subarray(start, start + length);
  }

  async function whole(array) {
    if (!array) return null;
    const out = new KINDS[array.dtype](array.shape.reduce((a, b) => a * b, 1));
    let at = 0;
    for (let index = 0; index < array.blocks.length; index++) {
      const part = await block(array, index);
      out.set(part, at);
      at += part.length;
    }
    return out;
  }

  // ---- numbers into colour, as jaxviz.plot does it

  const table = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const signedColours = table(meta.colours.signed), unsignedColours = table(meta.colours.unsigned);

  function limitOf(values, percentile) {
    const sizes = Float64Array.from(values.filter(Number.isFinite), Math.abs).sort();
    if (!sizes.length) return 0;
    const at = (percentile / 100) * (sizes.length - 1), low = Math.floor(at);
    const next = sizes[Math.min(low + 1, sizes.length - 1)];
    return sizes[low] + (at - low) * (next - sizes[low]) || sizes[sizes.length - 1];
  }

  const SIGNS = {
    both: (v) => v, for: (v) => Math.max(v, 0), against: (v) => Math.max(-v, 0), size: Math.abs,
  };
  // NaN is kept by all of them: Math.max gives it too.
  const signOf = (values, sign) => values.map(SIGNS[sign]);

  // Bilinear, pixel centres aligned; a neighbour without weight is not read, so one NaN stays one place.
  function stretched(values, [h, w], [height, width]) {
    if (h === height && w === width) return values;
    const along = (length, old) => Array.from({ length }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * old) / length - 0.5, 0), old - 1);
      const low = Math.floor(at);
      return [low, Math.min(low + 1, old - 1), at - low];
    });
    const mixed = (a, b, part) => (part === 0 ? a : (1 - part) * a + part * b);
    const rows = along(height, h), columns = along(width, w), out = new Float32Array(height * width);
    rows.forEach(([top, bottom, down], y) => columns.forEach(([left, right, across], x) => {
      const upper = mixed(values[top * w + left], values[top * w + right], across);
      out[y * width + x] = down === 0 ? upper
        : mixed(upper, mixed(values[bottom * w + left], values[bottom * w + right], across), down);
    }));
    return out;
  }

  function paint(canvas, [height, width], colour) {
    canvas.width = width;
    canvas.height = height;
    canvas.classList.toggle("sharp", height < 100);
    const picture = new ImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      const [r, g, b] = colour(i);
      picture.data.set([r, g, b, 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function paintImage(canvas, pixels, [height, width, channels]) {
    const at = (i) => (channels === 1 ? [pixels[i], pixels[i], pixels[i]] : pixels.subarray(3 * i, 3 * i + 3));
    paint(canvas, [height, width], at);
  }

  const shareOf = (value, limit) => Math.min(Math.max(limit ? value / limit : value, -1), 1);

  function colourOf(value, signed, limit) {
    if (!Number.isFinite(value)) return [115, 191, 115];
    const at = 3 * Math.round(255 * (signed ? (shareOf(value, limit) + 1) / 2 : shareOf(value, limit)));
    return (signed ? signedColours : unsignedColours).subarray(at, at + 3);
  }

  function paintHeat(canvas, values, extent, signed, limit, cover, grey) {
    paint(canvas, extent, (i) => {
      const own = colourOf(values[i], signed, limit);
      if (!grey || !cover || !Number.isFinite(values[i])) return own;
      const strength = 0.9 * Math.abs(shareOf(values[i], limit)) ** (signed ? 0.6 : 0.8);
      return [0, 1, 2].map((c) => {
        const over = strength * own[c] + (1 - strength) * (38 + 0.8 * grey[i]);
        return (1 - cover) * own[c] + cover * over;
      });
    });
  }

  // ---- texts: a token is a span, coloured; blanks stand between words

  function paintToken(node, value, limit) {
    const colour = colourOf(value, true, limit);
    const linear = Array.from(colour, (c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    node.style.background = `rgb(${colour.join()})`;
    node.style.color = light > 0.179 ? "#000" : "#fff"; // a contrast of 4.58 at least, whatever the colour
  }

  // The first `most` tokens of an example, as nodes; `dress` makes more of each.
  function spans(n, values, limit, dress, most = Infinity) {
    const [texts, glued] = meta.tokens[n];
    return texts.slice(0, most).flatMap((text, t) => {
      const node = make("span", { class: "token" }, text);
      paintToken(node, values[t], limit);
      dress?.(node, text, t);
      return t && glued[t] === "0" ? [" ", node] : [node];
    });
  }

  // Tokens that the arrow keys go through: one stop of the tab key, each with its number.
  function paragraph(title, map) {
    const list = make("div", { class: "text", role: "listbox", "aria-orientation": "horizontal", "aria-label": `${title}: tokens, full colour at ${number(map.limit)}` });
    list.append(...spans(now.example, map.values, map.limit, (node, text, t) => {
      const said = number(map.values[t]);
      const more = { role: "option", "aria-label": `${text}: ${said}`, title: said, "data-token": t };
      for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
    }));
    const tokenOf = (event) => event.target.closest("[data-token]")?.dataset.token;
    const follow = (event) => { const t = tokenOf(event); if (t !== undefined) moveTo(0, Number(t)); };
    for (const kind of ["pointerover", "pointerdown", "focusin"]) list.addEventListener(kind, follow);
    list.addEventListener("keydown", (event) => {
      const last = list.children.length - 1, at = now.place[1];
      const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      list.children[Math.min(Math.max(to, 0), last)].focus();
    });
    return make("div", { class: "of-map" }, make("p", {}, title, make("span", { class: "hint" }, ` full colour at ${number(map.limit)}`)), list);
  }

  function tokenTable() {
    const heads = ["token", ...drawn.map((map) => map.title)].map((text) => make("th", { scope: "col" }, text));
    const rows = meta.tokens[now.example][0].map((text, t) => make("tr", {}, make("th", { scope: "row" }, text),
      ...drawn.map((map) => make("td", {}, number(map.raw[t])))));
    $("token-table").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  }

  function greyOf(pixels, [height, width, channels]) {
    const out = new Float32Array(height * width);
    for (let i = 0; i < out.length; i++)
      for (let c = 0; c < channels; c++) out[i] += pixels[channels * i + c] / channels;
    return out;
  }

  // ---- which examples

  let labels, predicted, confidence;
  const targets = [];

  const isRight = (n) => labels[n] === predicted[n];

  function choose() {
    const wanted = (id) => ($(id).value === "" ? null : Number($(id).value));
    const label = wanted("by-label"), taken = wanted("by-predicted"), right = $("by-right").value;
    const low = Number($("by-low").value) / 100, high = Number($("by-high").value) / 100;
    const order = $("by-order").value, found = [];
    for (let n = 0; n < meta.count; n++) {
      if (labels && label !== null && labels[n] !== label) continue;
      if (predicted && taken !== null && predicted[n] !== taken) continue;
      if (labels && predicted && right && isRight(n) !== (right === "right")) continue;
      // To the precision of what is asked for: 100 % takes all of them.
      if (confidence && (confidence[n] < low || confidence[n] > high + 1e-6)) continue;
      found.push(n);
    }
    const sign = { most: -1, least: 1 }[order];
    if (sign) found.sort((a, b) => sign * (confidence[a] - confidence[b]) || a - b);
    now.chosen = found;
    now.page = 0;
    for (const cell of document.querySelectorAll("#matrix button"))
      cell.setAttribute("aria-pressed", String(
        cell.dataset.label === $("by-label").value && cell.dataset.predicted === $("by-predicted").value));
    gallery();
  }

  function caption(n) {
    const own = meta.names ? meta.names[n] : `#${n}`;
    const said = predicted ? className(predicted[n]) : "";
    const sure = confidence ? ` ${percent(confidence[n])}` : "";
    const lines = [make("span", {}, own)];
    if (labels && predicted) {
      const right = isRight(n);
      const words = right ? `✓ ${said}${sure}` : `✗ ${className(labels[n])}, taken for ${said}${sure}`;
      lines.push(make("span", { class: right ? "right" : "wrong" }, words));
    } else if (said || labels) lines.push(make("span", {}, `${said || className(labels[n])}${sure}`));
    return lines;
  }

  function gallery() {
    const pages = Math.max(1, Math.ceil(now.chosen.length / PAGE));
    const rows = now.chosen.slice(now.page * PAGE, (now.page + 1) * PAGE);
    $("shown").textContent = `${now.chosen.length.toLocaleString("en")} of ${meta.count.toLocaleString("en")} examples`;
    $("page-number").textContent = `page ${now.page + 1} of ${pages}`;
    $("page-back").disabled = now.page === 0;
    $("page-on").disabled = now.page + 1 >= pages;
    const canvases = rows.map((n) => {
      const canvas = meta.tokens ? make("span", { class: "snippet" }) : make("canvas", { "aria-hidden": "true", width: 1, height: 1 });
      const button = make("button", { type: "button", "data-example": n }, canvas, ...caption(n));
      if (n === now.example) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => { open(n); $("example-title").focus(); });
      return [n, canvas, make("li", {}, button)];
    });
    $("cards").replaceChildren(...canvases.map(([, , item]) => item));
    latest("gallery", async (mine) => {
      const shows = $("by-show").value;
      for (const [n, canvas] of canvases) {
        if (shows === "image") {
          const pixels = await row(meta.images, n);
          if (!mine()) return;
          paintImage(canvas, pixels, meta.images.shape.slice(1));
        } else {
          const map = meta.views[now.view].maps[Number(shows)], values = await row(map.array, n);
          if (!mine()) return;
          if (meta.tokens) canvas.replaceChildren(...spans(n, values, limitOf(values, 99), null, SNIPPET));
          else paintHeat(canvas, values, map.array.shape.slice(1), map.array.signed, limitOf(values, 99));
        }
      }
    });
  }

  // ---- the confusion matrix

  function confusion() {
    if (!labels || !predicted || meta.classes.length < 2) return;
    $("confusion").hidden = $("to-confusion").hidden = false;
    const counts = new Map();
    for (let n = 0; n < meta.count; n++) {
      const key = `${labels[n]} ${predicted[n]}`;
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    const cell = (label, taken, words) => {
      const count = counts.get(`${label} ${taken}`) ?? 0;
      const button = make("button", {
        type: "button", "aria-pressed": "false", "data-label": label, "data-predicted": taken,
        "aria-label": `${className(label)} taken for ${className(taken)}: ${count} examples`,
      }, words ?? String(count));
      button.addEventListener("click", () => {
        const again = button.getAttribute("aria-pressed") === "true";
        $("filters").reset();
        $("by-label").value = again ? "" : label;
        $("by-predicted").value = again ? "" : taken;
        choose();
      });
      return button;
    };
    if (meta.classes.length > MOST_CLASSES) {
      const pairs = [...counts].map(([key, count]) => [...key.split(" ").map(Number), count]);
      const wrong = pairs.filter(([a, b]) => a !== b).sort((a, b) => b[2] - a[2]).slice(0, PAIRS);
      $("matrix").append(
        make("caption", {}, `The ${wrong.length} most frequent confusions among ${meta.classes.length} classes`),
        make("thead", {}, make("tr", {}, ...["true class", "taken for", "examples"].map((t) => make("th", { scope: "col" }, t)))),
        make("tbody", {}, ...wrong.map(([a, b]) => make("tr", {},
          make("th", { scope: "row" }, className(a)), make("td", { class: "text" }, className(b)), make("td", {}, cell(a, b))))));
      return;
    }
    const every = meta.classes.map((_, index) => index);
    const rows = every.map((label) => {
      const all = every.reduce((sum, taken) => sum + (counts.get(`${label} ${taken}`) ?? 0), 0);
      return make("tr", {}, make("th", { scope: "row" }, className(label)), ...every.map((taken) => {
        const count = counts.get(`${label} ${taken}`) ?? 0;
        if (!count) return make("td", { class: "none" }, "0");
        const share = count / all, classes = [label === taken && "own", share > 0.6 && "dense"].filter(Boolean).join(" ");
        const found = make("td", { class: classes || null }, cell(label, taken));
        found.style.setProperty("--share", share > 0.6 ? "1" : (0.1 + 0.5 * share).toFixed(2));
        return found;
      }));
    });
    $("matrix").append(
      make("caption", {}, "Rows: true class. Columns: taken for."),
      make("thead", {}, make("tr", {}, make("td", {}), ...every.map((c) => make("th", { scope: "col" }, className(c))))),
      make("tbody", {}, ...rows));
  }

  // ---- one example

  // All of an example is drawn as large as its image, or as its largest map.
  function size() {
    if (meta.images) return meta.images.shape.slice(1, 3);
    if (meta.tokens) return [1, meta.tokens[now.example][0].length];
    const sizes = meta.views[now.view].maps.map((map) => map.array.shape.slice(1));
    return [0, 1].map((axis) => Math.max(1, ...sizes.map((one) => one[axis])));
  }
  let drawn = []; // maps of the example that is shown: { title, values, size, limit }

  function open(n) {
    now.example = n;
    for (const button of $("cards").querySelectorAll("button"))
      button.toggleAttribute("aria-current", false), Number(button.dataset.example) === n && button.setAttribute("aria-current", "true");
    example();
  }

  function step(by) {
    const at = now.chosen.indexOf(now.example);
    const next = now.chosen[at < 0 ? 0 : Math.min(Math.max(at + by, 0), now.chosen.length - 1)];
    if (next !== undefined) open(next);
  }

  function figure(title, ...more) {
    const canvas = make("canvas", { role: "img", "aria-label": title, width: 1, height: 1 });
    return [canvas, make("figure", {}, canvas, make("figcaption", {}, title, ...more))];
  }

  function follow(canvas) {
    const at = (event) => {
      const box = canvas.getBoundingClientRect(), [height, width] = size();
      const cell = (share, length) => Math.min(Math.max(Math.floor(share * length), 0), length - 1);
      moveTo(cell((event.clientY - box.top) / box.height, height), cell((event.clientX - box.left) / box.width, width));
    };
    canvas.addEventListener("pointermove", at);
    canvas.addEventListener("pointerdown", at);
  }

  function moveTo(y, x) {
    now.place = [y, x];
    $("row").value = y;
    $("column").value = x;
    values();
  }

  function values() {
    const [height, width] = size();
    const rows = drawn.map((map) => {
      const [h, w] = map.size;
      const y = Math.min(Math.floor((now.place[0] * h) / height), h - 1);
      const x = Math.min(Math.floor((now.place[1] * w) / width), w - 1);
      return make("tr", {}, make("th", { scope: "row" }, map.title),
        make("td", {}, number(map.raw[y * w + x])), make("td", {}, number(map.limit)));
    });
    $("values").replaceChildren(...rows);
    if (!meta.tokens) return;
    $("token-told").textContent = meta.tokens[now.example][0][now.place[1]];
    for (const node of document.querySelectorAll("#maps [data-token]")) {
      const here = Number(node.dataset.token) === now.place[1];
      node.setAttribute("aria-selected", String(here));
      node.tabIndex = here ? 0 : -1;
    }
  }

  function bars(shares, target, label) {
    const order = Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a] || a - b);
    const shown = new Set([...order.slice(0, BARS), target, label].filter((c) => c !== undefined && c !== null));
    $("bars").replaceChildren(...order.filter((c) => shown.has(c)).map((c) => {
      const words = className(c) + (c === label ? " (true)" : "") + (c === target ? " (explained)" : "");
      const meter = make("meter", { min: 0, max: 1, value: shares[c], "aria-label": className(c) });
      return make("tr", {}, make("th", { scope: "row", class: c === target ? "explained" : null }, words),
        make("td", {}, meter, make("span", { class: "share" }, percent(shares[c]))));
    }));
  }

  function example() {
    const n = now.example;
    $("example-back").disabled = now.chosen.indexOf(n) <= 0;
    $("example-on").disabled = now.chosen.indexOf(n) === now.chosen.length - 1;
    latest("example", async (mine) => {
      const view = meta.views[now.view], target = targets[now.view]?.[n];
      const pixels = meta.images && (await row(meta.images, n));
      const shares = meta.probabilities && (await row(meta.probabilities, n));
      const found = [];
      for (const map of view.maps) found.push(await row(map.array, n));
      if (!mine()) return;
      const own = meta.names ? meta.names[n] : `#${n}`;
      $("example-title").textContent = `Example ${own}`;
      const told = [];
      if (labels) told.push(`true class ${className(labels[n])}`);
      if (predicted) told.push(`taken for ${className(predicted[n])}${confidence ? ` (${percent(confidence[n])})` : ""}`);
      if (target !== undefined) told.push(`explained: ${className(target)}`);
      $("told").textContent = told.join(", ");
      if (shares) bars(shares, target, labels?.[n]);

      const sign = $("sign").value, percentile = Number($("percentile").value), cover = Number($("overlay").value) / 100;
      const grey = pixels && greyOf(pixels, meta.images.shape.slice(1));
      const length = meta.tokens?.[n][0].length;
      drawn = view.maps.map((map, m) => {
        const raw = meta.tokens ? found[m].subarray(0, length) : found[m];
        const extent = meta.tokens ? [1, length] : map.array.shape.slice(1);
        return { title: map.title, raw, size: extent, values: signOf(raw, sign), signed: map.array.signed && sign === "both" };
      });
      for (const map of drawn) map.limit = limitOf(map.values, percentile);
      const figures = [];
      if (pixels) {
        const [canvas, whole] = figure("input");
        paintImage(canvas, pixels, meta.images.shape.slice(1));
        follow(canvas);
        figures.push(whole);
      }
      for (const map of drawn) {
        if (meta.tokens) {
          figures.push(paragraph(map.title, map));
          continue;
        }
        const [canvas, whole] = figure(map.title);
        canvas.setAttribute("aria-label", `${map.title}: full colour at ${number(map.limit)}`);
        heat(canvas, map, cover, grey);
        follow(canvas);
        figures.push(whole);
      }
      $("maps").replaceChildren(...figures);
      const [height, width] = size();
      $("row").max = height - 1;
      $("column").max = width - 1;
      moveTo(Math.min(now.place[0], height - 1), Math.min(now.place[1], width - 1));
      if (meta.tokens) tokenTable();
      compare(cover, grey);
    });
  }

  function heat(canvas, map, cover, grey) {
    paintHeat(canvas, stretched(map.values, map.size, size()), size(), map.signed, map.limit, cover, grey);
  }

  // ---- two methods

  function ranks(values) {
    const order = Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
    const out = new Float64Array(values.length);
    for (let i = 0; i < order.length;) {
      let j = i;
      while (j < order.length && values[order[j]] === values[order[i]]) j++;
      for (let k = i; k < j; k++) out[order[k]] = (i + j - 1) / 2; // equal ones share their ranks' mean
      i = j;
    }
    return out;
  }

  function correlation(a, b) {
    const mean = (v) => v.reduce((s, x) => s + x, 0) / v.length;
    const [x, y] = [a, b], mx = mean(x), my = mean(y);
    let xy = 0, xx = 0, yy = 0;
    for (let i = 0; i < x.length; i++) {
      xy += (x[i] - mx) * (y[i] - my);
      xx += (x[i] - mx) ** 2;
      yy += (y[i] - my) ** 2;
    }
    return xx && yy ? xy / Math.sqrt(xx * yy) : NaN;
  }

  function compare(cover, grey) {
    $("compared").hidden = drawn.length < 2;
    if (drawn.length < 2) return;
    const chosen = [$("first"), $("second")].map((select) => drawn[Number(select.value)]);
    const [a, b] = chosen.map((map) => stretched(map.values, map.size, size()));
    const finite = Array.from(a.keys()).filter((i) => Number.isFinite(a[i]) && Number.isFinite(b[i]));
    const [x, y] = [a, b].map((v) => Float64Array.from(finite, (i) => v[i]));
    const top = (v) => {
      const order = Array.from(v.keys()).sort((i, j) => v[j] - v[i] || i - j);
      return new Set(order.slice(0, Math.max(1, Math.round(v.length / 10))));
    };
    const [s, t] = [top(x), top(y)];
    const common = [...s].filter((i) => t.has(i)).length / s.size;
    const rho = correlation(ranks(x), ranks(y));
    $("compared-told").textContent = finite.length
      ? `Spearman's rank correlation ${Number.isFinite(rho) ? rho.toFixed(3) : "undefined, for one is constant"}; of the strongest tenth of places ${percent(common)} are common.`
      : "No place has finite numbers in both.";
    const share = (map, v, i) => shareOf(v[i], map.limit);
    const less = a.map((_, i) => share(chosen[0], a, i) - share(chosen[1], b, i));
    const lessTitle = `${chosen[0].title} less ${chosen[1].title}, each as shares of its full colour`;
    if (meta.tokens) {
      const told = (title, values, limit) => make("div", { class: "of-map" }, make("p", {}, title), make("p", { class: "text" }, ...spans(now.example, values, limit)));
      $("pair").replaceChildren(...chosen.map((map) => told(map.title, map.values, map.limit)), told(lessTitle, less, 1));
      return;
    }
    const figures = chosen.map((map) => {
      const [canvas, whole] = figure(map.title);
      heat(canvas, map, cover, grey);
      return whole;
    });
    const [canvas, whole] = figure(lessTitle);
    paintHeat(canvas, less, size(), true, 1, 0, null);
    $("pair").replaceChildren(...figures, whole);
  }

  // ---- means

  function means() {
    const view = meta.views[now.view];
    const many = meta.groups && meta.groups.some((count) => count > 1);
    if (!many || !view.maps.length) return;
    $("means").hidden = $("to-means").hidden = false;
    latest("means", async (mine) => {
      const group = Number($("mean-of").value), all = group === meta.classes.length;
      const pixels = meta.mean_images && (await row(meta.mean_images, group)), found = [];
      for (const map of view.maps) found.push(await row(map.mean, group));
      if (!mine()) return;
      const count = all ? meta.count : meta.groups[group];
      $("means-told").textContent = `${count.toLocaleString("en")} examples; maps with a number that is not finite are left out`;
      const figures = [];
      if (pixels) {
        const [canvas, whole] = figure("mean image");
        paintImage(canvas, pixels, meta.mean_images.shape.slice(1));
        figures.push(whole);
      }
      view.maps.forEach((map, m) => {
        const limit = limitOf(found[m], 99);
        const [canvas, whole] = figure(map.title);
        canvas.setAttribute("aria-label", `mean of ${map.title}: full colour at ${number(limit)}`);
        paintHeat(canvas, stretched(found[m], map.array.shape.slice(1), size()), size(), map.array.signed, limit, 0, null);
        figures.push(whole);
      });
      $("mean-maps").replaceChildren(...figures);
    });
  }

  // ---- saving: an .npz file is a zip of .npy files

  const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  function crc32(bytes) {
    let c = 0xffffffff;
    for (let i = 0; i < bytes.length; i++) c = CRC[(c ^ bytes[i]) & 255] ^ (c >>> 8);
    return (c ^ 0xffffffff) >>> 0;
  }

  async function npy(array) {
    const code = { float32: "<f4", int32: "<i4", uint8: "|u1" }[array.dtype];
    const shape = array.shape.length === 1 ? `${array.shape[0]},` : array.shape.join(", ");
    let head = `{'descr': '${code}', 'fortran_order': False, 'shape': (${shape}), }`;
    head += " ".repeat(63 - ((10 + head.length) % 64)) + "\n";
    const values = await whole(array), data = new Uint8Array(values.buffer, 0, values.byteLength);
    const out = new Uint8Array(10 + head.length + data.length);
    out.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, head.length & 255, head.length >> 8]);
    out.set(new TextEncoder().encode(head), 10);
    out.set(data, 10 + head.length);
    return out;
  }

  function zip(files) {
    const parts = [], index = [];
    let at = 0;
    for (const [name, data] of files) {
      const title = new TextEncoder().encode(name), sum = crc32(data);
      const common = (view, from) => {
        view.setUint16(from, 20, true); // version; bit 11 says that names are UTF-8
        view.setUint16(from + 2, 0x800, true);
        view.setUint32(from + 6, 0x21 << 16, true); // the first of January 1980
        view.setUint32(from + 10, sum, true);
        view.setUint32(from + 14, data.length, true);
        view.setUint32(from + 18, data.length, true);
        view.setUint16(from + 22, title.length, true);
      };
      const local = new DataView(new ArrayBuffer(30)), central = new DataView(new ArrayBuffer(46));
      local.setUint32(0, 0x04034b50, true);
      common(local, 4);
      central.setUint32(0, 0x02014b50, true);
      central.setUint16(4, 20, true);
      common(central, 6);
      central.setUint32(42, at, true);
      parts.push(local.buffer, title, data);
      index.push(central.buffer, title);
      at += 30 + title.length + data.length;
    }
    const length = index.reduce((sum, part) => sum + part.byteLength, 0), end = new DataView(new ArrayBuffer(22));
    end.setUint32(0, 0x06054b50, true);
    end.setUint16(8, files.length, true);
    end.setUint16(10, files.length, true);
    end.setUint32(12, length, true);
    end.setUint32(16, at, true);
    return new Blob([...parts, ...index, end.buffer], { type: "application/zip" });
  }

  async function save() {
    $("save").disabled = true;
    $("saved").textContent = "reading …";
    try {
      const files = [];
      const add = async (name, array) => array && files.push([`${name}.npy`, await npy(array)]);
      for (const name of ["images", "labels", "predicted", "probabilities"]) await add(name, meta[name]);
      for (const view of meta.views) {
        const before = meta.views.length > 1 ? `${view.label}: ` : "";
        await add(`${before}target`, view.target);
        for (const map of view.maps) await add(`${before}map_${map.name}`, map.array);
      }
      const arrays = files.length;
      if (meta.tokens) files.push(["tokens.json", new TextEncoder().encode(JSON.stringify(meta.words))]);
      const link = make("a", { href: URL.createObjectURL(zip(files)), download: "report.npz" });
      link.click();
      $("saved").textContent = `saved: ${arrays} arrays${meta.tokens ? " and the tokens" : ""}`;
    } catch (error) {
      failed(error);
    }
    $("save").disabled = false;
  }

  // ---- the start

  async function start() {
    [labels, predicted, confidence] = await Promise.all([meta.labels, meta.predicted, meta.confidence].map(whole));
    for (const view of meta.views) targets.push(await whole(view.target));
    const there = { places: !meta.tokens, labels, predicted, confidence, right: labels && predicted, probabilities: meta.probabilities };
    for (const node of document.querySelectorAll("[data-needs]")) node.hidden = !there[node.dataset.needs];
    const occurring = (values) => [...new Set(values)].sort((a, b) => a - b).map((c) => [c, className(c)]);
    options($("by-label"), [["", "all"], ...occurring(labels ?? [])]);
    options($("by-predicted"), [["", "all"], ...occurring(predicted ?? [])]);
    const titles = meta.views[0].maps.map((map, m) => [m, map.title]);
    options($("by-show"), [...(meta.images ? [["image", "images"]] : []), ...titles]);
    options($("first"), titles);
    options($("second"), titles);
    if (titles.length > 1) $("second").value = "1";
    options($("view"), meta.views.map((view, v) => [v, view.label]));
    $("of-view").hidden = meta.views.length < 2;
    if (meta.groups) {
      const with_ = meta.groups.flatMap((count, c) => (count ? [[c, className(c)]] : []));
      options($("mean-of"), [[meta.classes.length, "all"], ...with_]);
      $("means-by").textContent = meta.grouped_by;
    }
    confusion();

    $("filters").addEventListener("input", choose);
    $("filters").addEventListener("reset", () => setTimeout(choose));
    for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
    const turn = (by) => { now.page += by; gallery(); };
    $("page-back").addEventListener("click", () => turn(-1));
    $("page-on").addEventListener("click", () => turn(1));
    $("example-back").addEventListener("click", () => step(-1));
    $("example-on").addEventListener("click", () => step(1));
    for (const id of ["sign", "percentile", "overlay", "first", "second"])
      $(id).addEventListener("input", () => {
        $("percentile-told").textContent = $("percentile").value;
        $("overlay-told").textContent = $("overlay").value;
        example();
      });
    for (const id of ["row", "column"])
      $(id).addEventListener("input", () => { now.place = [Number($("row").value), Number($("column").value)]; values(); });
    $("view").addEventListener("input", () => { now.view = Number($("view").value); gallery(); example(); means(); });
    $("mean-of").addEventListener("input", means);
    $("save").addEventListener("click", save);

    choose();
    if (meta.count) open(0);
    means();
    document.documentElement.dataset.ready = "true";
  }

  start().catch(failed);
})();
