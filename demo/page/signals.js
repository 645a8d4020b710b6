// The strip chart below a live picture: eyes, mouth and yaw of the last seconds, a line per face in its colour.
class Signals {
  static SECONDS = 10;
  // fixed ranges, so that the scale never jumps; a value outside is drawn at the edge
  static ROWS = [
    { name: "left eye", low: 0, high: 0.5, text: (v) => v.toFixed(2) },
    { name: "right eye", low: 0, high: 0.5, text: (v) => v.toFixed(2) },
    { name: "mouth", low: 0, high: 1, text: (v) => v.toFixed(2) },
    { name: "yaw", low: -60, high: 60, text: (v) => `${Math.round(v) || 0}°` },
  ];

  constructor(canvas, colour) {
    Object.assign(this, { canvas, colour, mirror: false, labelled: 0 });
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }
  clear() { this.faces = new Map(); this.largest = null; this.now = 0; }
  // values of a face: left eye, right eye, mouth, yaw, left and right as in the frame, null where unknown
  add(result, mirror) {
    this.now = performance.now() / 1e3; this.mirror = mirror;
    const first = this.now - Signals.SECONDS, ids = new Set(result.faces.map((face) => face.id));
    for (const face of result.faces) {
      if (!this.faces.has(face.id)) this.faces.set(face.id, { samples: [], seen: 0 });
      const { samples } = Object.assign(this.faces.get(face.id), { seen: this.now });
      samples.push({ time: this.now, values: [...face.eye_aspect, face.mouth_aspect, face.pose_deg.yaw] });
    }
    for (const [id, { samples, seen }] of this.faces) {
      if (!ids.has(id)) samples.push({ time: this.now, values: [null, null, null, null] });
      while (samples[0].time < first) samples.shift();
      if (seen < first) this.faces.delete(id);
    }
    const area = ({ box_xyxy: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
    this.largest = result.faces.reduce((a, b) => (a && area(a) >= area(b) ? a : b), null)?.id ?? null;
    this.draw(); this.label();
  }
  // left and right as seen on the screen
  value({ values }, row) {
    if (!this.mirror) return values[row];
    return row < 2 ? values[1 - row] : row === 3 && values[3] !== null ? -values[3] : values[row];
  }
  latest(row) { const sample = this.faces.get(this.largest)?.samples.at(-1); return sample ? this.value(sample, row) : null; }
  draw() {
    const canvas = this.canvas, scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
    const ctx = canvas.getContext("2d"), step = height / Signals.ROWS.length;
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = "12px system-ui, sans-serif"; ctx.textBaseline = "top"; ctx.lineJoin = "bevel";
    Signals.ROWS.forEach((row, i) => {
      const top = i * step;
      const y = (value) => top + 6 + (step - 12) * (1 - Math.min(1, Math.max(0, (value - row.low) / (row.high - row.low))));
      ctx.strokeStyle = "rgba(255,255,255,.18)"; ctx.lineWidth = 1;
      ctx.beginPath(); ctx.moveTo(0, y(0)); ctx.lineTo(width, y(0)); ctx.stroke();
      ctx.lineWidth = 1.5;
      for (const [id, { samples }] of this.faces) {
        ctx.strokeStyle = `rgb(${this.colour(id)})`;
        ctx.beginPath();
        let before = null; // time of the last point; an unknown value, or a hidden page, leaves a gap
        for (const sample of samples) {
          const value = this.value(sample, i), x = width * (1 - (this.now - sample.time) / Signals.SECONDS);
          if (value !== null) before !== null && sample.time - before < 3 ? ctx.lineTo(x, y(value)) : ctx.moveTo(x, y(value));
          before = value === null ? null : sample.time;
        }
        ctx.stroke();
      }
      const value = this.latest(i);
      ctx.fillStyle = "rgba(255,255,255,.75)"; ctx.textAlign = "left";
      ctx.fillText(row.name, 8, top + 5);
      ctx.fillStyle = `rgb(${this.colour(this.largest ?? 0)})`; ctx.textAlign = "right";
      if (value !== null) ctx.fillText(row.text(value), width - 8, top + 5);
    });
  }
  // for screen readers, once a second
  label() {
    if (this.now - this.labelled < 1) return;
    this.labelled = this.now;
    const values = Signals.ROWS.map((row, i) => `${row.name} ${this.latest(i) === null ? "unknown" : row.text(this.latest(i))}`);
    const face = this.largest === null ? "no face" : `face ${this.largest}: ${values.join(", ")}`;
    this.canvas.setAttribute("aria-label", `the last ${Signals.SECONDS} seconds of each face; ${face}`);
  }
}
