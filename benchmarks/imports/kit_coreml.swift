// This program times a Core ML package with Core ML's own API and keeps its masks.
// `u2export import --as coreml` reads the results.
//
// On a Mac, as a program:   swiftc -O -parse-as-library Bench.swift -o bench
//                           ./bench MODEL.mlpackage inputs results [all|cpuOnly|cpuAndGPU|cpuAndNeuralEngine]
// On an iPhone: add this file, the package (Xcode compiles it to .mlmodelc) and the folder `inputs` to an app, and call
//     try U2ExportBench.run(model: compiledModelURL, inputs: inputsURL, results: documentsURL, units: .all)
//
// The timed part is one MLModel.prediction(from:). The pixel buffer is made before it, and the output is read after it.

import CoreML
import Foundation
import ImageIO

enum U2ExportBench {
    static let artifact = "@ARTIFACT@"
    static let warmup = 10, least = 128
    static let leastSeconds = 10.0

    static func run(model url: URL, inputs: URL, results: URL, units: MLComputeUnits) throws {
        let settings = MLModelConfiguration()
        settings.computeUnits = units
        let start = DispatchTime.now()
        let model = try MLModel(contentsOf: url, configuration: settings)
        let load = milliseconds(since: start)
        let entry = model.modelDescription.inputDescriptionsByName.first!
        let output = model.modelDescription.outputDescriptionsByName.first!.key
        let pictures = try FileManager.default.contentsOfDirectory(at: inputs, includingPropertiesForKeys: nil)
            .filter { $0.pathExtension == "png" }.sorted { $0.lastPathComponent < $1.lastPathComponent }
        let features = try pictures.map { picture in
            try MLDictionaryFeatureProvider(dictionary: [
                entry.key: MLFeatureValue(imageAt: picture, constraint: entry.value.imageConstraint!, options: nil)
            ])
        }

        var masks = [String: String](), first = 0.0
        for (picture, feature) in zip(pictures, features) {
            let before = DispatchTime.now()
            let result = try model.prediction(from: feature)
            if first == 0 { first = milliseconds(since: before) }
            let name = picture.deletingPathExtension().lastPathComponent
            masks[name] = name + ".mask"
            try floats(of: result.featureValue(for: output)!).withUnsafeBufferPointer { Data(buffer: $0) }
                .write(to: results.appendingPathComponent(name + ".mask"))
        }

        var samples = [Double](), total = 0.0, count = 0
        while count < warmup + least || total < leastSeconds * 1000 {
            let before = DispatchTime.now()
            _ = try model.prediction(from: features[0])
            let took = milliseconds(since: before)
            count += 1
            if count > warmup {
                samples.append(took)
                total += took
            }
        }

        let thermal = ["nominal", "fair", "serious", "critical"][ProcessInfo.processInfo.thermalState.rawValue]
        let report: [String: Any] = [
            "format": "u2export-device/1", "tool": "u2export kit coreml", "artifact_sha256": artifact,
            "device": ["model": machine(), "os": ProcessInfo.processInfo.operatingSystemVersionString],
            "runtime": "Core ML", "compute_unit": name(of: units), "thermal": thermal,
            "timed": "one MLModel.prediction(from:), the pixel buffer made before, the output not read",
            "load_ms": [load], "first_ms": first, "warmup": warmup, "masks": masks, "predict_ms": samples,
        ]
        try JSONSerialization.data(withJSONObject: report).write(to: results.appendingPathComponent("result.json"))
        print("median \(samples.sorted()[samples.count / 2]) ms of \(samples.count) samples")
    }

    static func milliseconds(since start: DispatchTime) -> Double {
        Double(DispatchTime.now().uptimeNanoseconds - start.uptimeNanoseconds) / 1e6
    }

    /// Returns the values of the mask, row by row: of a tensor of any float type, or of an 8-bit grey picture (0...255
    /// becomes 0...1).
    static func floats(of value: MLFeatureValue) -> [Float] {
        if let array = value.multiArrayValue {
            return (0..<array.count).map { array[$0].floatValue }
        }
        let buffer = value.imageBufferValue!
        CVPixelBufferLockBaseAddress(buffer, .readOnly)
        defer { CVPixelBufferUnlockBaseAddress(buffer, .readOnly) }
        let stride = CVPixelBufferGetBytesPerRow(buffer)
        let bytes = CVPixelBufferGetBaseAddress(buffer)!.assumingMemoryBound(to: UInt8.self)
        return (0..<CVPixelBufferGetHeight(buffer)).flatMap { y in
            (0..<CVPixelBufferGetWidth(buffer)).map { x in Float(bytes[y * stride + x]) / 255 }
        }
    }

    static func machine() -> String {
        var system = utsname()
        uname(&system)
        return withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    static func name(of units: MLComputeUnits) -> String {
        switch units {
        case .cpuOnly: return "cpuOnly"
        case .cpuAndGPU: return "cpuAndGPU"
        case .cpuAndNeuralEngine: return "cpuAndNeuralEngine"
        default: return "all"
        }
    }
}

#if os(macOS)
@main
struct Program {
    static func main() throws {
        let words = CommandLine.arguments
        guard words.count >= 4 else {
            print("usage: bench MODEL.mlpackage INPUTS RESULTS [all|cpuOnly|cpuAndGPU|cpuAndNeuralEngine]")
            exit(2)
        }
        let units: [String: MLComputeUnits] = [
            "all": .all, "cpuOnly": .cpuOnly, "cpuAndGPU": .cpuAndGPU, "cpuAndNeuralEngine": .cpuAndNeuralEngine,
        ]
        let compiled = try MLModel.compileModel(at: URL(fileURLWithPath: words[1]))
        try U2ExportBench.run(
            model: compiled, inputs: URL(fileURLWithPath: words[2]), results: URL(fileURLWithPath: words[3]),
            units: units[words.count > 4 ? words[4] : "all"] ?? .all)
    }
}
#endif
