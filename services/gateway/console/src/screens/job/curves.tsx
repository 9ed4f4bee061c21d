import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { count, number } from "../../format";
import type { Point } from "../../api/types";
import { texts } from "../../texts";
import { smooth } from "./smooth";

const words = texts.job;
/** Of a chart, in letters as they are on this screen. */
const HEIGHT = 15;
const letter = (): number => parseFloat(getComputedStyle(document.documentElement).fontSize);
/** Between two steps that are named: there are no halves of steps. */
const WHOLE = [...Array(10).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

/** A canvas keeps the colors that it was painted with. */
const darkness = matchMedia("(prefers-color-scheme: dark)");
const isDark = signal(darkness.matches);
darkness.addEventListener("change", () => (isDark.value = darkness.matches));

interface Curve {
  name: string;
  values: (number | null)[];
  color: string;
  width: number;
  alpha?: number;
  /** Values that are far apart are joined. */
  gaps?: boolean;
}

interface CurvesProps {
  points: readonly Point[];
  /** Steps at which a checkpoint was saved. */
  checkpoints: readonly number[];
}

export function Curves({ points, checkpoints }: CurvesProps) {
  const [weight, setWeight] = useState(0.8);
  const [isLog, setLog] = useState(false);
  if (points.length < 2) {
    return (
      <section class="card">
        <h2>{words.curves}</h2>
        <p class="hint">{words.noCurves}</p>
      </section>
    );
  }
  const steps = points.map((point) => point.step);
  const of = (name: "loss" | "lr" | "validation_loss") => points.map((point) => point[name] ?? null);
  const loss = of("loss");
  const last = points.at(-1)!;
  const validation = of("validation_loss");
  return (
    <section class="card">
      <div class="head">
        <h2>{words.curves}</h2>
        <div class="tools">
          <label>
            <span>{words.smoothing}</span>
            <input type="range" min="0" max="0.98" step="0.02" value={weight} onInput={(event) => setWeight(event.currentTarget.valueAsNumber)} />
          </label>
          <label class="check">
            <input type="checkbox" checked={isLog} onChange={(event) => setLog(event.currentTarget.checked)} />
            <span>{words.logScale}</span>
          </label>
        </div>
      </div>
      <div class="charts">
        <Chart
          label={words.loss} steps={steps} isLog={isLog} marks={checkpoints}
          curves={[
            { name: words.loss, values: loss, color: "--curve", width: 1, alpha: 0.3 },
            { name: words.smoothed, values: smooth(loss, weight), color: "--curve", width: 2 },
            ...(validation.some((each) => each !== null)
              ? [{ name: words.validation, values: validation, color: "--curve-2", width: 2, gaps: true }]
              : []),
          ]}
        />
        <Chart
          label={words.learningRate} steps={steps} isLog={false} marks={[]}
          curves={[{ name: words.learningRate, values: of("lr"), color: "--curve-3", width: 2 }]}
        />
      </div>
      <p class="hint">
        {words.curveTable}: {words.stepRow(count(last.step))}
        {last.loss !== undefined && `, ${words.loss} ${number(last.loss)}`}
        {last.lr !== undefined && `, ${words.learningRate} ${number(last.lr)}`}
      </p>
    </section>
  );
}

interface ChartProps {
  label: string;
  steps: number[];
  curves: Curve[];
  isLog: boolean;
  marks: readonly number[];
}

function Chart({ label, steps, curves, isLog, marks }: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const data = [steps, ...curves.map((curve) => curve.values)] as uPlot.AlignedData;

  useEffect(() => {
    const place = box.current!;
    const made = new uPlot(optionsOf(label, curves, isLog, marks, place.clientWidth), data, place);
    plot.current = made;
    const sizes = new ResizeObserver(() => made.setSize({ width: place.clientWidth, height: HEIGHT * letter() }));
    sizes.observe(place);
    return () => {
      sizes.disconnect();
      made.destroy();
    };
  }, [isLog, marks.length, curves.length, isDark.value]);
  useEffect(() => plot.current?.setData(data), [steps.length, curves]);

  return <div ref={box} class="chart" role="img" aria-label={label} />;
}

function optionsOf(label: string, curves: Curve[], isLog: boolean, marks: readonly number[], width: number): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--text-2"), font: `${0.75 * letter()}px ${style.fontFamily}`, grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT * letter(),
    title: label,
    cursor: { y: false },
    scales: { x: { time: false }, y: isLog ? { distr: 3 } : {} },
    axes: [
      { ...axis, incrs: WHOLE, values: (_plot, values) => values.map(count) },
      { ...axis, size: 4.4 * letter(), values: (_plot, values) => values.map((value) => (value == null ? "" : number(value))) },
    ],
    series: [
      { label: texts.viewer.step, value: (_plot, step) => (step == null ? words.nothing : count(step)) },
      ...curves.map((curve): uPlot.Series => ({
        label: curve.name, value: (_plot, value) => (value == null ? words.nothing : number(value)), stroke: color(curve.color), width: curve.width, alpha: curve.alpha ?? 1,
        spanGaps: curve.gaps ?? false, points: { show: curve.gaps ?? false },
      })),
    ],
    hooks: { draw: [(plot) => drawMarks(plot, marks, color("--text-2"))] },
  };
}

/** A dashed line at each checkpoint. */
function drawMarks(plot: uPlot, marks: readonly number[], color: string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = color;
  ctx.setLineDash([4, 4]);
  for (const step of marks) {
    const x = plot.valToPos(step, "x", true);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
