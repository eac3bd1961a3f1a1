import TensorFlowLite
import UIKit

/// An exported file in the LiteRT interpreter (the pod still has its old name, TensorFlow Lite).
///
/// An actor: `try await classifier.classify(photo)` runs off the main thread, one photo at a time, as an interpreter
/// must. For two at once, make two of these.
actor LiteRtClassifier {
    struct Prediction {
        let label: String
        let index: Int
        let probability: Float
    }

    private let input: ModelInput
    private let labels: [String]
    private let interpreter: Interpreter

    init(threads: Int = 2) throws {
        let input = try ModelInput.load()
        let text = try String(contentsOf: resource("labels", "txt"), encoding: .utf8)
        let labels = Array(text.components(separatedBy: "\n").dropLast())  // the last line ends, too
        precondition(input.input.dtype == "uint8", "export the file with --input-type uint8")
        precondition(labels.count == input.labels.count, "labels.txt is of another file")

        var options = Interpreter.Options()
        options.threadCount = threads
        options.isXNNPackEnabled = true  // off by default, and what these files are made for
        let interpreter = try Interpreter(modelPath: resource("mobilevit", "tflite").path, options: options)
        try interpreter.allocateTensors()
        self.input = input
        self.labels = labels
        self.interpreter = interpreter
    }

    /// The best classes of a photo, the best first.
    func classify(_ photo: UIImage, maxResults: Int = 5) throws -> [Prediction] {
        try interpreter.copy(rgb(input.prepare(photo)), toInputAt: 0)  // `image`: (1, H, W, 3)
        try interpreter.invoke()
        let output = try interpreter.output(at: 0)  // `probabilities`: (1, N)
        let probabilities = output.data.withUnsafeBytes { Array($0.bindMemory(to: Float32.self)) }
        return probabilities.indices
            .sorted { probabilities[$0] > probabilities[$1] }
            .prefix(maxResults)
            .map { Prediction(label: labels[$0], index: $0, probability: probabilities[$0]) }
    }

    /// One byte for each of R, G, B, 0 to 255, row by row from the top. Core Graphics has no 24-bit pixels, so it draws
    /// R, G, B and an unused byte.
    private func rgb(_ picture: UIImage) throws -> Data {
        guard let picture = picture.cgImage else { throw CocoaError(.coderInvalidValue) }
        let (width, height) = (picture.width, picture.height)
        var pixels = [UInt8](repeating: 0, count: 4 * width * height)
        try pixels.withUnsafeMutableBytes { memory in
            guard
                let context = CGContext(
                    data: memory.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: 4 * width, space: CGColorSpaceCreateDeviceRGB(),
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue | CGBitmapInfo.byteOrder32Big.rawValue)
            else { throw CocoaError(.coderInvalidValue) }
            context.draw(picture, in: CGRect(x: 0, y: 0, width: width, height: height))
        }
        return Data((0..<3 * width * height).map { pixels[$0 / 3 * 4 + $0 % 3] })
    }
}
